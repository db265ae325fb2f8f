"""The README's pictures: the report of a study, and the same study in the dashboard, as small PNG files.

    python benchmarks/pictures.py results/field-guide --into pictures

Needs Chromium with its driver on PATH, and selenium. The report must have been written before (`study.py report`).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

WIDTH = 1280
"""Of a picture in pixels; the README shows it at two thirds of that."""
COLOURS = 128
"""Enough for flat figures and smooth letters; a third of the bytes of full colour."""


def main() -> None:
    """Takes both pictures and prints their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a study")
    parser.add_argument("--into", type=Path, default=Path(), help="where the pictures are written")
    parser.add_argument("--report-height", type=int, default=1120)
    parser.add_argument("--dashboard-height", type=int, default=900)
    chosen = parser.parse_args()
    chosen.into.mkdir(parents=True, exist_ok=True)
    with _browser() as browser:
        _size(browser, chosen.report_height)
        browser.get((chosen.folder / "report.html").resolve().as_uri())
        _save(browser, chosen.into / "report.png")
        with _dashboard(chosen.folder) as address:
            _size(browser, chosen.dashboard_height)
            browser.get(address)
            _wait_for(browser, "return document.querySelectorAll('.plotly .trace').length > 0")
            _save(browser, chosen.into / "dashboard.png")


@contextmanager
def _browser() -> Generator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # it refuses to start as root with one
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def _size(browser: Any, height: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )


def _wait_for(browser: Any, condition: str) -> None:
    deadline = time.monotonic() + 60
    while not browser.execute_script(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the page did not come to: {condition}")
        time.sleep(0.2)
    time.sleep(2)  # figures move into their place


def _save(browser: Any, path: Path) -> None:
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height} pixels, {path.stat().st_size / 1000:.0f} kB")


@contextmanager
def _dashboard(folder: Path) -> Generator[str]:
    """Serves the study on a free port; gives the address of its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard"))]
    command += [f"sqlite:///{(folder / 'study.db').resolve().as_posix()}", "--host", "127.0.0.1", "--port", str(port)]
    if (folder / "artifacts").is_dir():
        command += ["--artifact-dir", str(folder / "artifacts")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=30).close()
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/dashboard/studies/1"
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
