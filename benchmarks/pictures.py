"""The README's pictures: the report of a study, and the same study in the dashboard, as small PNG files.

    python benchmarks/pictures.py results/field-guide --into pictures

Needs selenium, and Chromium with its driver on PATH. The report must exist (`python study.py report`).
"""

import io
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from benchmarks.measuring import dashboard
from tests.stress.chromium import chromium, resize
from tests.stress.script import run

WIDTH = 1280
"""Width of a picture in pixels; the README shows it at two thirds of that."""
COLOURS = 128
"""Palette size of the PNG files: enough for flat figures and smooth letters, at a third of the bytes of full colour."""


def main(folder: Path, *, into: Path = Path(), report_height: int = 1120, dashboard_height: int = 900) -> None:
    """Take both pictures and print their sizes.

    Parameters
    ----------
    folder
        The study's folder.
    into
        Folder for the pictures.
    """
    into.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        resize(browser, WIDTH, report_height)
        browser.get((folder / "report.html").resolve(strict=True).as_uri())
        _save(browser, into / "report.png")
        with dashboard(folder, folder.name) as address:
            resize(browser, WIDTH, dashboard_height)
            browser.get(address)
            _wait_for(browser, "return document.querySelectorAll('.plotly .trace').length > 0")
            _save(browser, into / "dashboard.png")


def _wait_for(browser: Any, condition: str) -> None:
    deadline = time.monotonic() + 60
    while not browser.execute_script(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after 60 s: {condition}")
        time.sleep(0.2)
    time.sleep(2)  # figures move into their place


def _save(browser: Any, path: Path) -> None:
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height} pixels, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run(main)
