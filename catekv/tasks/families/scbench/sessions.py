"""Which sessions can be drawn."""

from __future__ import annotations

from collections.abc import Callable

from catekv.tasks.core.task import BuildRequest
from catekv.tasks.families.scbench import drawn, drawn_code, drawn_stories, drawn_summaries
from catekv.tasks.families.scbench.drawn import Drawn

Session = Callable[[BuildRequest, int, int], Drawn]

#: those whose published texts are generated too: drawn unless a file is given
GENERATED: dict[str, Session] = {
    "kv": drawn.kv,
    "vt": drawn.vt,
    "prefix_suffix": drawn.prefix_suffix,
    "mf": drawn.mf,
    "many_shot": drawn.many_shot,
}
#: those whose published texts are books, articles and code: drawn with ``source=built-in`` only
OF_THE_SAME_SHAPE: dict[str, Session] = {
    "qa_eng": drawn_stories.qa_eng,
    "choice_eng": drawn_stories.choice_eng,
    "repoqa": drawn_code.repoqa,
    "repoqa_and_kv": drawn_code.repoqa_and_kv,
    "summary": drawn_summaries.summary,
    "summary_with_needles": drawn_summaries.summary_with_needles,
}
SESSIONS = GENERATED | OF_THE_SAME_SHAPE
#: those that the embedded model's vocabulary can express
SMALL = ("kv", "vt")
