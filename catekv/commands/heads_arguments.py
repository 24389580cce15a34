"""Options of ``catekv heads``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catekv.calibration.heads.curves import CurveSettings
from catekv.calibration.heads.exchange import FORMATS
from catekv.calibration.heads.formats.known_model import QUERY_RULES
from catekv.calibration.heads.gates import GateTraining
from catekv.calibration.heads.overlaps import OverlapSettings
from catekv.commands.schema import Group
from catekv.evaluation.options import COUNT, MOST_SAMPLES, REQUIRED, option
from catekv.evaluation.run.request import CHECKED_TASKS, Request
from catekv.methods.head_groups import SCOPES


@dataclass(frozen=True)
class Measured:
    """Whose heads are measured, and where the result goes."""

    output: Path = option(REQUIRED, "npz file of what heads are worth", metavar="FILE")
    model: str | None = option(
        None,
        "local folder, .gguf file or hub name (default: the embedded model)",
        positional=True,
        metavar="MODEL",
    )
    overwrite: bool = option(False, "replace what is there")


@dataclass(frozen=True)
class Known:
    """Which model head files belong to, by its configuration alone."""

    model: str | None = option(
        None, "folder, .gguf file or hub name of the model that the heads must fit", metavar="MODEL"
    )
    shape: str | None = option(
        None, "the same without a model", metavar="LAYERSxKV_HEADS[xQUERY_HEADS]"
    )
    ratio: float | None = option(None, "share of heads that keep everything")


@dataclass(frozen=True)
class Imported:
    """A head file to read."""

    path: Path = option(REQUIRED, "file or folder of heads", positional=True)
    output: Path = option(REQUIRED, "npz file to write", metavar="FILE")
    form: str | None = option(
        None, "format (default: what it looks like)", flag="--from", choices=tuple(FORMATS)
    )
    query_heads: str = option(
        QUERY_RULES[0],
        "how scores of query heads become one of their KV head (default: {default})",
        choices=QUERY_RULES,
    )
    trust_pickle: bool = option(False, "read CoKV's published files, which are pickles")


@dataclass(frozen=True)
class Exported:
    """Heads to write for another project."""

    path: Path = option(REQUIRED, "file or folder of heads", positional=True)
    form: str = option(REQUIRED, "format", flag="--to", choices=tuple(FORMATS))
    output: Path = option(REQUIRED, "file or folder to write")
    group_size: int = option(4, "heads of a cluster (tangram; default: {default})", least=1)
    scope: str = option(
        SCOPES[0],
        "heads that may share a cluster: of all layers (global) or of one (per_layer) (tangram; "
        "default: {default})",
        choices=SCOPES,
    )
    tokens: int = option(
        4096,
        "of the prompt of which heads keep shares (tangram; default: {default})",
        **COUNT,
    )


@dataclass(frozen=True)
class Compared:
    """Which heads are compared, and on what they are measured."""

    heads: tuple[str, ...] = option(
        REQUIRED, "[NAME=]FILE, of any format", positional=True, verbatim=True
    )
    ratio: float = option(REQUIRED, "share of heads that keep everything")
    output: Path = option(REQUIRED, "folder of the table, the masks and the measurements")
    model: str | None = option(
        None, "model to measure on (default: the embedded model)", metavar="MODEL"
    )
    measure: bool = option(
        False, "measure accuracy and fidelity too (otherwise the commands are printed)"
    )
    length: int = option(1024, "tokens of the prompts (default: {default})", **COUNT)
    budget: int | None = option(
        None, "entries of a head that is not full (default: length/8)", metavar="TOKENS", **COUNT
    )
    samples: int = option(
        10, "per task, and passages of text (default: {default})", least=1, most=MOST_SAMPLES
    )
    tasks: tuple[str, ...] = option(CHECKED_TASKS, "tasks (default: {default})", metavar="TASK")


REQUEST = Group(Request, ("dtype", "device", "attention", "chat_template"))
#: Where no text is put into a conversation.
PLAIN_REQUEST = Group(Request, ("dtype", "device", "attention"))
SEEDED_REQUEST = Group(Request, ("dtype", "device", "attention", "seed"))
MEASURED, CURVES, GATES = Group(Measured), Group(CurveSettings), Group(GateTraining)
OVERLAPS = Group(OverlapSettings)
COMPARED, KNOWN = Group(Compared), Group(Known)
IMPORTED, EXPORTED = Group(Imported), Group(Exported)
