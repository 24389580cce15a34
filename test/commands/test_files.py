"""Files are written whole or not at all, and read with errors of one line."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catekv import files
from catekv.errors import UserError
from catekv.evaluation.fidelity import records as fidelity
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.report import write
from catekv.evaluation.report.document import Section
from catekv.methods.head_mask import HeadMask

DEEP = "[" * 100_000


def test_a_file_is_replaced_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    assert files.write_atomically(path, "one ä") == path
    path.chmod(0o640)
    files.write_atomically(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    files.write_atomically(link, "first")
    files.write_atomically(link, "second")
    assert link.is_symlink()
    assert target.read_text() == "second"


def test_devices_and_pipes_take_the_content_and_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="start the reader"):
        files.write_atomically(pipe, "text")
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        try:
            write_when_read(pipe, "text")
            assert reader.communicate(timeout=10)[0] == "text"
        finally:
            reader.kill()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    files.write_atomically("/dev/null", "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def write_when_read(pipe: Path, text: str) -> None:
    for _ in range(1000):
        try:
            files.write_atomically(pipe, text)
        except UserError:
            time.sleep(0.01)
        else:
            return


def test_the_standard_output_is_written_in_order(tmp_path: Path) -> None:
    script = (
        "from catekv.files import write_atomically\n"
        "print('before')\nwrite_atomically('/dev/stdout', 'content\\n')\nprint('after')\n"
    )
    wanted = "before\ncontent\nafter\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (wanted, "")
    with (tmp_path / "out").open("w") as stream:
        subprocess.run([sys.executable, "-c", script], stdout=stream, check=True)
    assert (tmp_path / "out").read_text() == wanted


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/dev/full", "No space left on device; free some space"),
        (".", "is a directory"),
        ("file/below", "a part of the path is a file"),
        ("x" * 300, "File name too long; choose a shorter name"),
        ("a\0b", "null"),
        ("socket", "no regular file"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    (tmp_path / "file").write_text("mine")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("socket")
        with pytest.raises(UserError, match=f"(?i)cannot write .*{message}") as caught:
            files.write_atomically(tmp_path / place, "text")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "socket"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write_atomically(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left on device"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_half_a_character_is_not_half_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lone surrogate"):
        files.write_atomically(tmp_path / "a.txt", "a\ud800")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_left_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with files.replacing(path) as partial:
        partial.write_text("whole")
        assert files.leftovers(path) == [partial]
    (tmp_path / ".a.txt.notes.partial").write_text("mine")
    assert files.leftovers(path) == []


READERS: dict[str, Callable[[Any], Any]] = {
    "text": files.read_text,
    "json": files.read_json,
    "object": files.read_object,
    "yaml": files.read_yaml,
    "arrays": files.read_arrays,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", [".", "absent", "pipe", "/dev/zero", "x" * 300, "a\0b"])
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, reader: str, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"cannot read .*;"):
        READERS[reader](tmp_path / place)


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        ("text", b"\xff\xfe"),
        ("json", b"\xff\xfe"),
        ("json", b"{"),
        ("json", DEEP.encode()),
        ("json", b"9" * 5000),
        ("object", b"[1]"),
        ("object", b"null"),
        ("yaml", b"a: ["),
        ("yaml", DEEP.encode()),
        ("yaml", b"a: 2020-99-99"),
        ("yaml", b"? [a]\n: 1"),
        ("yaml", b"!!python/object:os.system x"),
        ("yaml", b"a: \x00"),
        ("arrays", b""),
        ("arrays", b"PK\x03\x04"),
        ("arrays", b"\x93NUMPY\x01\x00"),
    ],
)
def test_damaged_content_is_one_line(tmp_path: Path, reader: str, content: bytes) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*;") as caught:
        READERS[reader](path)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_flipped_bytes_of_an_archive_are_one_line_or_harmless(tmp_path: Path) -> None:
    path = files.write_arrays(tmp_path / "a.npz", {"a": np.arange(50.0), "b": np.array("text")})
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            files.read_arrays(path)
        except UserError:
            refused += 1
    assert refused > len(whole) // 2


def test_a_plain_array_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    other = tmp_path / "text.npz"
    other.write_text("# a text, which numpy takes for a pickle\n")
    for one in (path, other):
        with pytest.raises(UserError, match="no npz archive"):
            files.read_arrays(one)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/../../b", "/tmp", "a//b", "a\0", "a\\b", "."]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"the family .* would lead elsewhere"):
        files.check_name("the family", name)
    assert files.check_name("the family", "meta/llama-3.1_8B") == "meta/llama-3.1_8B"


def _report(folder: Path) -> None:
    write.write(folder, Section("runs"), [])


def _fidelity(folder: Path) -> None:
    with fidelity.opened(folder, {}, overwrite=True, resume=True):
        pass


def _evaluation(folder: Path) -> None:
    RunDirectory(folder).prepare({"methods": {}}, resume=True, overwrite=True)


def _mask(folder: Path) -> None:
    HeadMask.random((2, 2), 0.5).save(folder)


@pytest.mark.parametrize(
    ("writer", "name"),
    [
        (_report, "report.html"),
        (_report, "report.md"),
        (_fidelity, "fidelity.json"),
        (_fidelity, "report.md"),
        (_evaluation, "manifest.json"),
        (_evaluation, "summary.md"),
        (_mask, "meta.json"),
    ],
)
def test_files_of_somebody_else_are_refused_and_kept(
    tmp_path: Path, writer: Callable[[Path], None], name: str
) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(UserError):
        writer(tmp_path)
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_a_report_replaces_only_its_own_figures(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("mine.svg", "mine.csv", "old.svg"):
        (tmp_path / "figures" / name).write_text("a picture")
    _report(tmp_path)
    with (tmp_path / "report.md").open("a") as page:
        page.write("![of an earlier report](figures/old.svg)")
    _report(tmp_path)
    assert sorted(os.listdir(tmp_path / "figures")) == ["mine.csv", "mine.svg"]


NO_PERMISSION = """
import os, sys
from catekv import files
from catekv.errors import UserError
# the interpreter itself may lie where nobody else reads
os.setgid(65534); os.setuid(65534)
for action in (
    lambda: files.write_atomically(sys.argv[1] + "/closed/a", "x"),
    lambda: files.write_atomically(sys.argv[1] + "/open/mine", "x"),
    lambda: files.read_text(sys.argv[1] + "/open/mine"),
    lambda: files.check_folder(__import__("pathlib").Path(sys.argv[1] + "/closed")),
):
    try:
        action()
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_permission_is_one_line() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed").mkdir(mode=0o555)
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        (folder / "open" / "mine").write_text("mine")
        (folder / "open" / "mine").chmod(0o600)
        done = subprocess.run(
            [sys.executable, "-c", NO_PERMISSION, name], capture_output=True, text=True
        )
        assert (done.stderr, done.stdout.count("Permission denied; change its")) == ("", 4)
        assert (folder / "open" / "mine").read_text() == "mine"
