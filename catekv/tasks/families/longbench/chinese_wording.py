"""Our prompts of the Chinese tasks."""

# ruff: noqa: RUF001  (Chinese punctuation is meant)
from __future__ import annotations

from catekv.tasks.families.longbench.prompt_text import PromptText

CHINESE = {
    "multifieldqa_zh": PromptText(
        "先读完这份材料，最后有一个与它有关的问题。\n\n",
        "\n\n材料到此结束。只写答案，越短越好。\n问题：{input}",
        "\n答案：",
    ),
    "dureader": PromptText(
        "以下是从网上找到的几篇文章，其中有的能回答最后的问题。\n\n",
        "\n\n文章到此结束。请根据它们作答。\n问题：{input}",
        "\n答案：",
    ),
    "vcsum": PromptText(
        "这是一次会议的发言记录，需要写出要点。\n\n",
        "\n\n记录到此结束。用一段话概括会上谈了什么。",
        "\n概括：",
    ),
    "lsht": PromptText(
        "每条新闻后面都标有它的类别，写出最后一条新闻的类别。\n\n",
        "\n\n{input}",
    ),
    "passage_retrieval_zh": PromptText(
        "下列段落都有编号，最后给出的摘要概括了其中一段。\n\n",
        "\n\n摘要：{input}\n\n它概括的是哪一段？按“段落3”的形式作答。",
        "\n答案：",
    ),
}
