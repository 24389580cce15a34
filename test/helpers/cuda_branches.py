"""Where the code asks whether it is on a CUDA device, and whether a walk took that side.

A question is ``x.is_cuda``, ``x.type`` compared with ``"cuda"``, a name that starts with it, or
``torch.cuda.is_available()``. An ``if`` that asks has been taken if a statement of its CUDA side
was executed, any other question if its line was.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "catekv"


@dataclass(frozen=True)
class Branch:
    """One question.

    Attributes:
        file: relative to the package. function: with its classes. line: of the question.
        side: lines one of which is executed if the answer was that this is a CUDA device.
    """

    file: str
    function: str
    line: int
    side: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"{self.file}: {self.function}"


def branches(package: Path = PACKAGE) -> list[Branch]:
    """Every question of a package."""
    found = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "cuda" in text:
            visitor = _Questions(path.relative_to(package).as_posix())
            visitor.visit(ast.parse(text))
            found += visitor.found
    return found


def asks(node: ast.AST) -> bool | None:
    """What an expression says where it asks for CUDA and that is the device; None: it does not."""
    if isinstance(node, ast.Attribute) and node.attr == "is_cuda":
        return True
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = node.left, node.comparators[0]
        if isinstance(left, ast.Attribute) and left.attr == "type" and _is_cuda(right):
            return isinstance(node.ops[0], ast.Eq)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name == "startswith" and node.args and _is_cuda(node.args[0]):
            return True
        return True if ast.unparse(node.func) == "torch.cuda.is_available" else None
    return None


def _is_cuda(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == "cuda"


class _Questions(ast.NodeVisitor):
    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Branch] = []
        self._names: list[str] = []
        # questions of an `if` that is being visited, and the lines of its CUDA side
        self._sides: dict[int, tuple[int, ...]] = {}

    def _within(self, node: Any) -> None:
        self._names.append(node.name)
        self._body(node.body)
        self._names.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _within  # noqa: N815

    def _body(self, statements: list[ast.stmt]) -> None:
        """Statements, and behind an ``if`` without ``else`` what follows it."""
        for number, statement in enumerate(statements):
            if isinstance(statement, ast.If):
                after = statement.orelse or statements[number + 1 :]
                self._decision(statement, after)
            self.visit(statement)

    def _decision(self, statement: ast.If, otherwise: list[ast.stmt]) -> None:
        question, plain = statement.test, True
        if isinstance(question, ast.UnaryOp) and isinstance(question.op, ast.Not):
            question, plain = question.operand, False
        parts = question.values if isinstance(question, ast.BoolOp) else [question]
        inside = {}
        for part in parts:
            negated = isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Not)
            asked = part.operand if isinstance(part, ast.UnaryOp) else part
            answer = asks(asked)
            if answer is not None:
                inside[id(asked)] = answer == (plain != negated)
        # of questions that do not agree, nothing follows but that they are asked
        if len(set(inside.values())) == 1:
            side = statement.body if all(inside.values()) else otherwise
            lines = tuple(sorted({one.lineno for one in side}))
            self._sides.update(dict.fromkeys(inside, lines))

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._body(node.body)
        self._body(node.orelse)

    def generic_visit(self, node: ast.AST) -> None:
        if asks(node) is not None:
            side = self._sides.get(id(node)) or (node.lineno,)  # type: ignore[attr-defined]
            name = ".".join(self._names) or "module"
            self.found.append(Branch(self.file, name, node.lineno, side))  # type: ignore[attr-defined]
        for field in ("body", "orelse", "finalbody", "handlers"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                self._body(statements)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.stmt):
                self.visit(child)


@contextmanager
def taken(wanted: list[Branch], package: Path = PACKAGE) -> Iterator[set[Branch]]:
    """Which of these branches took their CUDA side, known when it ends."""
    lines = {(str(package / one.file), line): one for one in wanted for line in one.side}
    files = {str(package / one.file) for one in wanted}
    seen: set[tuple[str, int]] = set()
    codes: dict[CodeType, bool] = {}

    def within(frame: FrameType, event: str, argument: Any) -> Any:
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return within

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        interesting = codes.get(code)
        if interesting is None:
            of_code = {line for *_, line in code.co_lines() if line}
            interesting = code.co_filename in files and any(
                (code.co_filename, line) in lines for line in of_code
            )
            codes[code] = interesting
        return within if interesting else None

    found: set[Branch] = set()
    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield found
    finally:
        sys.settrace(before)
        found.update(lines[place] for place in seen if place in lines)
