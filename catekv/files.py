"""Files of users: written whole or not at all, read with errors of one line.

A link is written through: the file it names is replaced. A pipe or a device takes the content as
a stream. Nothing that is no regular file is ever replaced by one.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import io
import json
import os
import socket
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from catekv.errors import UserError

#: what begins every file of spreadsheets and some editors, and is no part of the text
BYTE_ORDER_MARK = "\ufeff"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_PARTIAL = ".partial"
_REMEDIES = {
    errno.ENOSPC: "free some space and start again",
    errno.EDQUOT: "free some space and start again",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "a part of the path is a file, choose another place",
    errno.EEXIST: "a part of the path is a file, choose another place",
    errno.ENOENT: "check the name",
    errno.ENXIO: "start the reader of the pipe first",
}


def refusal(doing: str, error: OSError) -> UserError:
    """What the system says about a file, as one line with the remedy."""
    code = -1 if error.errno is None else error.errno
    remedy = _REMEDIES.get(code, "check the place or choose another")
    return UserError(f"{doing}: {error.strerror or error}; {remedy}")


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Replace a file in one step: readers see the old or the new content, never a part.

    Args:
        path: made with its folders if absent; a link is followed, a pipe or device written to.
        content: text is written as UTF-8.

    Returns:
        ``path``.

    Raises:
        UserError: the place cannot be written, e.g. a full disk; the old content is untouched.
    """
    path = Path(path)
    try:
        data = content.encode("utf-8") if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise UserError(
            f"cannot write {path}: its text holds half a character (a lone surrogate); correct "
            "the names and texts that go into it"
        ) from error
    with replacing(path) as partial:
        partial.write_bytes(data)
    return path


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 2) -> Path:
    """:func:`write_atomically` of a value as JSON, with a line end."""
    return write_atomically(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], suffix: str = "") -> Iterator[Path]:
    """A name beside ``path`` to write to, which takes its place when the block ends well.

    For libraries that write by name; small content goes through :func:`write_atomically`.

    Args:
        suffix: what the name must end with, e.g. ``.npz``.

    Raises:
        UserError: no regular file at ``path``, or a place that cannot be written.
    """
    path = Path(path)
    try:
        if _is_stream(path):
            with tempfile.TemporaryDirectory() as folder:
                partial = Path(folder) / f"content{suffix}"
                yield partial
                _write_stream(path, partial.read_bytes())
            return
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(_partial_name(target.name, str(os.getpid())) + suffix)
        try:
            yield partial
            _settle(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(f"cannot write {path}", error) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write {str(path)!r}: {error}; choose another name") from error


def leftovers(path: Path) -> list[Path]:
    """What killed writers of a file left beside it."""
    head, tail = _partial_name(path.name, "\0").split("\0")
    return [
        file
        for file in path.parent.iterdir()
        if file.name.startswith(head)
        and file.name.endswith(tail)
        and file.name[len(head) : -len(tail)].isdecimal()
    ]


def open_regular(path: str | os.PathLike[str], pipes: bool = False) -> IO[bytes]:
    """Open a file for reading.

    Args:
        pipes: whether a pipe or ``/dev/stdin`` will do, where the whole content is read at once.

    Raises:
        UserError: missing, not permitted, a folder, a device.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not (pipes and stat.S_ISFIFO(kind)):
            what = "a folder" if stat.S_ISDIR(kind) else "no regular file"
            raise UserError(f"cannot read {path}: it is {what}; give the name of a file")
        return Path(path).open("rb")
    except OSError as error:
        raise refusal(f"cannot read {path}", error) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {str(path)!r}: {error}; check the name") from error


def read_bytes(path: str | os.PathLike[str], pipes: bool = False, start: int = 0) -> bytes:
    """The content of a file behind a position; errors as in :func:`open_regular`."""
    with open_regular(path, pipes) as stream:
        try:
            if start:
                stream.seek(start)
            return stream.read()
        except OSError as error:
            raise refusal(f"cannot read {path}", error) from error


def read_text(
    path: str | os.PathLike[str], pipes: bool = False, *, newline: str | None = None
) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        pipes: as in :func:`open_regular`.
        newline: None turns line ends into ``\\n``, ``""`` leaves them.

    Raises:
        UserError: another encoding, or a file that cannot be read.
    """
    data = read_bytes(path, pipes)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = data.startswith(_WIDE) or b"\0" in data[:4]
        found = "UTF-16 or UTF-32" if wide else "Latin-1 or no text at all"
        raise UserError(
            f"cannot read {path}: it is not UTF-8 but maybe {found} (byte "
            f"{data[error.start]:#04x}); save it as UTF-8"
        ) from error
    if "\0" in text[:4]:
        raise UserError(
            f"cannot read {path}: it is not UTF-8 but maybe UTF-16 or UTF-32; save it as UTF-8"
        )
    return text if newline == "" else text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], remedy: str = "restore it") -> Any:
    """The value of a JSON file; ``UserError`` for one that is damaged or nested too deep."""
    try:
        return json.loads(read_text(path))
    except UserError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            reason = str(error).removeprefix(f"cannot read {path}: ")
            raise UserError(f"{path} cannot be read as JSON: {reason}, or {remedy}") from error
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({type(error).__name__}: {_short(error)}); {remedy}"
        ) from error


def read_object(path: str | os.PathLike[str], remedy: str = "restore it") -> dict[str, Any]:
    """The JSON object of a file; ``UserError`` for another value too."""
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; {remedy}")
    return content


def read_fields(
    path: str | os.PathLike[str], remedy: str = "restore it", **kinds: type | tuple[type, ...]
) -> dict[str, Any]:
    """:func:`read_object` of a file that holds these fields, each of its kind."""
    content = read_object(path, remedy)
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{path}: its {name} is missing or damaged; {remedy}")
    return content


def read_yaml(path: str | os.PathLike[str], remedy: str = "correct it") -> Any:
    """The value of a YAML file of plain values."""
    return parse_yaml(read_text(path), f"{path}", remedy)


def parse_yaml(text: str, name: str, remedy: str = "correct it", loader: Any = None) -> Any:
    """The value of a YAML text.

    Args:
        name: of the file, for the error.
        loader: PyYAML's safe loader (default), or one made from it.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.load(text, loader or yaml.SafeLoader)
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{name}{where} is not YAML ({error.problem}); {remedy}") from error
    except Exception as error:
        # constructors of damaged values raise whatever their conversion does
        raise UserError(
            f"{name} is not YAML ({type(error).__name__}: {_short(error)}); {remedy}"
        ) from error


def read_arrays(path: str | os.PathLike[str], remedy: str = "make it again") -> dict[str, Any]:
    """All arrays of an npz file, by name; no pickles.

    Raises:
        UserError: another kind of file, a damaged archive, arrays that memory cannot hold.
    """
    import numpy as np

    data = io.BytesIO(read_bytes(path))
    try:
        if not zipfile.is_zipfile(data):  # numpy would take it for a pickle, and say how to load it
            raise UserError(f"{path} is no npz archive of arrays; {remedy}")
        data.seek(0)
        with np.load(data, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except UserError:
        raise
    except Exception as error:
        # the archive, its compression and the headers of its arrays have each their own errors
        raise UserError(
            f"{path} cannot be read as npz ({type(error).__name__}: {_short(error)}); {remedy}"
        ) from error


def write_tensors(
    tensor_file: Path,
    tensors: Mapping[str, Any],
    description_file: Path,
    description: Mapping[str, Any],
    what: str,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Tensors as safetensors, and plain values that describe them as JSON in the same folder.

    The description comes last: a torn write leaves a folder that reading refuses.

    Args:
        tensors: contiguous, by name. what: is written, for the message.
        beside: further files of tensors that the description speaks for, by their names.

    Raises:
        UserError: they cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = description_file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        description_file.unlink(missing_ok=True)
        for name, content in {tensor_file.name: tensors, **(beside or {})}.items():
            with replacing(folder / name) as partial:
                save_file(dict(content), str(partial))
        write_atomically(description_file, json.dumps(description, indent=1))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {what} to {folder}: {error}") from error


def read_tensors(
    path: str | os.PathLike[str], device: str = "cpu", remedy: str = "make it again"
) -> dict[str, Any]:
    """All tensors of a safetensors file, by name, on ``device``.

    Raises:
        UserError: no regular file, another kind of file, a torn one, a header that no file holds.
    """
    from safetensors.torch import load_file

    open_regular(path).close()
    try:
        return load_file(str(path), device=device)
    except Exception as error:
        # the header's own reader, the tensors' types and the device have each their own errors
        raise UserError(
            f"{path} cannot be read as safetensors ({type(error).__name__}: {_short(error)}); "
            f"{remedy}"
        ) from error


def write_arrays(path: str | os.PathLike[str], arrays: dict[str, Any]) -> Path:
    """Write an npz file, compressed, as :func:`write_atomically` does."""
    import numpy as np

    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return write_atomically(path, data.getvalue())


def write_table(
    path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Path:
    """Write a CSV file with a header, as :func:`write_atomically` does."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(header)
    table.writerows(rows)
    return write_atomically(path, text.getvalue())


def check_folder(folder: Path) -> None:
    """Make a folder; ``UserError`` unless files can be made in it."""
    probe = folder / _partial_name("writable", str(os.getpid()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise refusal(f"cannot write to {folder}", error) from error


def check_file(path: Path) -> None:
    """Make the folder of a file that takes long to work out; ``UserError`` unless the file can be
    written, before the work."""
    try:
        if not _is_stream(path):
            _target(path)
            check_folder(path.parent)
    except OSError as error:
        raise refusal(f"cannot write {path}", error) from error


def check_new_file(path: Path, overwrite: bool) -> None:
    """:func:`check_file`; ``UserError`` also where a file is there that may not be replaced."""
    if path.is_file() and not overwrite:
        raise UserError(f"{path} is there; use --overwrite or another --output")
    check_file(path)


def refuse_foreign(folder: Path, names: Iterable[str], manifest: str) -> None:
    """Raise ``UserError`` where files to be written are there and nothing says that they are ours.

    Args:
        names: of the files, in ``folder``.
        manifest: the file that is written with them; where it is, they may be replaced.
    """
    if (folder / manifest).exists():
        return
    for name in names:
        if (folder / name).exists():
            raise UserError(
                f"{folder} holds {name} but no {manifest} that says whose it is; move it away or "
                "choose another folder"
            )


def claim_folder(folder: Path, names: Iterable[str], manifest: str) -> None:
    """Make a folder for the files of a run before it starts; arguments of :func:`refuse_foreign`.

    Raises:
        UserError: no file can be made in it, or one of the names is taken by a file of another.
    """
    check_folder(folder)
    refuse_foreign(folder, names, manifest)


def check_name(what: str, name: str) -> str:
    """A name that becomes a part of a path: ``UserError`` where it would lead elsewhere."""
    parts = name.split("/")
    if not name or "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise UserError(
            f"{what} {name!r} becomes part of a path and would lead elsewhere; use letters, "
            "digits, '.', '-' and '_'"
        )
    return name


def hub_answers() -> bool:
    """Whether files can be had from the hub; asked first, because its library tries for half a
    minute. True where nobody has to ask: turned off, its library looks into its cache, and a proxy
    makes the connection itself."""
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false")
    if offline or any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
        return True
    from huggingface_hub.constants import ENDPOINT

    address = urlsplit(ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=5):
            return True
    except OSError:
        return False


def _partial_name(name: str, process: str) -> str:
    # short enough for every file system that takes the name itself
    while len(name.encode("utf-8", "surrogateescape")) > 200:
        name = name[:-1]
    return f".{name}.{process}{_PARTIAL}"


def _descriptor(path: Path) -> int | None:
    """The number of the open descriptor that a name such as ``/dev/stdout`` stands for."""
    own = {"/proc/self/fd", f"/proc/{os.getpid()}/fd", "/dev/fd"}
    for _ in range(8):
        folder = os.path.realpath(path.parent)
        if folder in own and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder) / path.readlink()
    return None


def _is_stream(path: Path) -> bool:
    """Whether a path names a pipe, a device or an open descriptor."""
    try:
        if _descriptor(path) is not None:
            return True
        kind = path.stat().st_mode
    except (OSError, ValueError):
        # absent, or refused when it is opened
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)


def _write_stream(path: Path, data: bytes) -> None:
    number = _descriptor(path)
    if number is None:
        # a pipe that nobody reads is an error instead of an endless wait
        number = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(number, True)
    else:
        sys.stdout.flush()
        number = os.dup(number)
    with open(number, "wb") as stream:
        stream.write(data)


def _target(path: Path) -> Path:
    """The regular file that a path names, or will name."""
    target = Path(os.path.realpath(path))
    if not target.exists():
        return target
    kind = target.stat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):
        raise UserError(
            f"cannot write {path}: it is no regular file; give the name of a new or a regular file"
        )
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return target


def _settle(partial: Path, target: Path) -> None:
    """Bring a file to the disk, then to its name; an existing file's permissions are kept."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if target.exists():
        partial.chmod(stat.S_IMODE(target.stat().st_mode))
    partial.replace(target)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."
