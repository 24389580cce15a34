"""Questions about documents: one fact (qa_1) or two hops over a bridge (qa_2)."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.drawing import documents, world
from catekv.tasks.families.ruler.plan import (
    Depth,
    Draft,
    Plan,
    Request,
    RulerOptions,
    check_depth,
    fixed_depths,
)
from catekv.tasks.wording.hay import insert, paragraph


@dataclass(frozen=True)
class DocumentOptions(RulerOptions):
    """Where questions come from: the synthetic world, or a file of the user.

    ``hops`` belongs to the synthetic world. ``depth`` places the gold documents.
    ``begin_answer=False`` ends the prompt with the question.
    """

    hops: int = 1
    squad_path: str | None = None
    hotpotqa_path: str | None = None
    depth: Depth = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hops not in (1, 2):
            raise UserError(f"hops={self.hops}; use 1 or 2")
        if self.squad_path and self.hotpotqa_path:
            raise UserError("squad_path and hotpotqa_path are both given; use one of them")
        check_depth(self.depth)


class DocumentPlan(Plan):
    """One question; the unit is one document without the answer, look-alikes first.

    Growing the text inserts documents; those already there keep their order.
    """

    def __init__(self, request: Request, options: DocumentOptions) -> None:
        self._request = request
        if options.squad_path or options.hotpotqa_path:
            corpus = (
                documents.squad(options.squad_path)
                if options.squad_path
                else documents.hotpotqa(str(options.hotpotqa_path))
            )
            self.data = corpus.data
            question = corpus.question(request.index, request.shared_random("question order"))
            self._source = corpus.others(question, request.random("others"))
            own = len(set(question.gold))
            self.limit = len(set(corpus.paragraphs)) - own
        else:
            question = world.question(request.seed("question"), options.hops)
            self._source = world.others(request.seed("others"), question.outputs)
        self._question, self.outputs = question, question.outputs
        self._others = list(question.near)
        random = request.random("positions")
        fixed = fixed_depths(options.depth, len(question.gold), request.index)
        self._gold = list(
            zip(fixed or [random.random() for _ in question.gold], question.gold, strict=True)
        )
        self._ranks = request.random("ranks")
        self._ranked: list[float] = []
        self.minimum, self.extra_limit = 0, 1000

    def _other(self, count: int) -> list[str]:
        """The first ``count`` documents without the answer, in the order of their ranks."""
        while len(self._others) < count:
            text = next(self._source, None)
            if text is None:
                break
            self._others.append(text)
        while len(self._ranked) < count:
            self._ranked.append(self._ranks.random())
        chosen = sorted(zip(self._ranked, self._others[:count], strict=False))
        return [text for _, text in chosen]

    def draft(self, units: int, extra: int = 0) -> Draft:
        wording = self._request.wording
        texts = self._other(units)
        if extra and len(self._other(units + 1)) > units:
            trimmed = " ".join(self._others[units].split(" ")[:extra])
            texts.insert(int(self._request.random("extra").random() * (len(texts) + 1)), trimmed)
        texts = insert(texts, self._gold)
        numbered = [wording.document(number, text) for number, text in enumerate(texts, 1)]
        instruction = wording.documents_instruction()
        return Draft(
            paragraph(instruction, "", *numbered),
            paragraph(instruction) + wording.documents_question(self._question.text),
            wording.documents_answer_prefix(),
            self._question.gold[-1:],
            {"documents": len(texts)},
        )
