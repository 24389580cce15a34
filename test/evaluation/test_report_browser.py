"""The report opened in a real browser: nothing sticks out, nothing is blank, it prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import report_runs as runs

from catekv.evaluation.report import report

#: Program to use instead of one found on the path.
VARIABLE = "CATEKV_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
PHONE, DESKTOP, PAPER = 390, 1280, 718  # CSS pixels; A4 without its margins
HEIGHT = 3000

#: Appended to a copy of the page: what is wider than the window, in the document's own words.
_PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement, out = [];
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > root.clientWidth + 1 || box.left < -1)
        && !e.closest(".scroll")) out.push(e.tagName + ": " + e.textContent.slice(0, 40));
  }
  const text = JSON.stringify({width: root.scrollWidth, window: innerWidth, out: out,
    hidden: [...document.querySelectorAll("svg, table")].filter(
      e => !e.closest("details") && !e.getBoundingClientRect().height).length});
  root.setAttribute("data-probe", text);
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on the path; install one, or name it in {VARIABLE}")
    return found


def run_browser(browser: str, profile: Path, *words: str) -> str:
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={profile}", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything that a report can show."""
    root = tmp_path_factory.mktemp("report")
    tasks = ["ruler/niah_single_1", "ruler/vt", "niah", "longbench/qasper", "longbench_e/hotpotqa"]
    paths = [
        runs.run(root / "one", tasks=tasks, lengths=[512, 1024], samples=10),
        runs.run(root / "two", methods=runs.methods(128), tasks=tasks, samples=10),
        runs.run(
            root / "three",
            model="a model with a name that is quite a bit longer than a telephone is wide",
            model_hash="other",
            lengths=[131072],
        ),
        runs.efficiency(root / "speed"),
        runs.mask_folder(root / "masks"),
    ]
    return report.report_on(paths, output=root / "out").folder / "report.html"


def probe(browser: str, page: Path, folder: Path, width: int, *, printed: bool = False) -> dict:
    """What the browser says of the page at a width; the print style is applied on request."""
    text = page.read_text().replace("</body>", f"{_PROBE}</body>")
    if printed:
        text = text.replace("@media print", "@media all")
    copy = folder / f"probe-{width}.html"
    copy.write_text(text)
    # a window of Chromium cannot be as narrow as a phone: the page lies in a frame that is
    frame = folder / f"frame-{width}.html"
    frame.write_text(
        f'<!DOCTYPE html><body style="margin:0"><iframe id="f" style="border:0" width="{width}" '
        f'height="2000" src="{copy.name}"></iframe><script>addEventListener("load", () => '
        "document.documentElement.setAttribute('data-inner', document.getElementById('f')"
        ".contentDocument.documentElement.getAttribute('data-probe')))</script></body>"
    )
    words = ["--allow-file-access-from-files", "--window-size=1600,2000", "--dump-dom"]
    dom = run_browser(browser, folder / "profile", *words, frame.as_uri())
    found = re.search(r'data-inner="([^"]*)"', dom)
    assert found is not None, dom[:500]
    content: dict = json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&"))
    assert content["window"] == width
    return content


@pytest.mark.parametrize(
    ("width", "printed"),
    [
        (320, False),
        (DESKTOP, False),
        pytest.param(PHONE, False, marks=pytest.mark.slow),
        pytest.param(PAPER, True, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_wider_than_the_window(
    browser: str, page: Path, tmp_path: Path, width: int, printed: bool
) -> None:
    found = probe(browser, page, tmp_path, width, printed=printed)
    assert found["out"] == []
    assert found["width"] <= width
    assert found["hidden"] == 0


def test_a_page_that_is_too_wide_would_be_found(browser: str, tmp_path: Path) -> None:
    wide = tmp_path / "wide.html"
    wide.write_text('<body><p style="width:900px">too wide</p></body>')
    found = probe(browser, wide, tmp_path, PHONE)
    assert found["out"] == ["P: too wide"]
    assert found["width"] > PHONE


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (PHONE, "light"),
        (PHONE, "dark"),
        pytest.param(DESKTOP, "light", marks=pytest.mark.slow),
        pytest.param(DESKTOP, "dark", marks=pytest.mark.slow),
    ],
)
def test_the_picture_of_the_page_is_not_blank(
    browser: str, page: Path, tmp_path: Path, width: int, theme: str
) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow reads the browser's pictures")
    target = tmp_path / "page.png"
    # the frame's trick again: 390 pixels are less than a window has
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!DOCTYPE html><body style="margin:0"><iframe style="border:0" width="{width}" '
        f'height="{HEIGHT}" src="{page.as_uri()}"></iframe></body>'
    )
    words = [f"--window-size={max(width, 600)},{HEIGHT}", f"--screenshot={target}"]
    if theme == "dark":
        words.append("--blink-settings=preferredColorScheme=0")
    run_browser(browser, tmp_path / "profile", *words, frame.as_uri())
    pixels = np.asarray(image.open(target).convert("RGB"))[:, :width].astype(int)
    ground = pixels[0, 0]
    assert (ground.sum() < 150) == (theme == "dark")
    written = (np.abs(pixels - ground).sum(axis=2) > 60).mean(axis=1)
    # words and pictures in every part of the page, and paper between them
    for part in np.array_split(written, 6):
        assert 0.005 < part.mean() < 0.7
    assert len(np.unique(pixels @ [1 << 16, 1 << 8, 1])) > 50


def test_it_prints(browser: str, page: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    words = [f"--print-to-pdf={target}", "--no-pdf-header-footer"]
    run_browser(browser, tmp_path / "profile", *words, page.as_uri())
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 2 <= pages <= 40
    assert len(content) > 20_000
