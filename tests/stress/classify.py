"""The bundle's page in a browser: give it pictures and compare its answers with those of `predict`."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.predict import Classifier


def give(browser: Any, files: Sequence[Path], seconds: float = 60) -> str:
    """Choose files and wait until all of them have an answer; return what the page says then."""
    browser.find_element("id", "choose").send_keys("\n".join(map(str, files)))
    deadline = time.monotonic() + seconds
    while "to go" in (said := browser.find_element("id", "status").text) or not said:
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
    return said


def table(browser: Any) -> dict[str, dict[str, str]]:
    """Save the table in the browser's folder `downloads` and return its rows by file name."""
    file = browser.downloads / "classified.csv"
    file.unlink(missing_ok=True)
    browser.find_element("id", "save").click()
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline, "no table was saved"
        time.sleep(0.02)
    return {row["path"].removeprefix("./"): row for row in csv.DictReader(io.StringIO(file.read_text("utf-8-sig")))}


def differences(bundle: Path, files: Sequence[Path], rows: dict[str, dict[str, str]]) -> dict[str, float]:
    """Return by file name how far a probability of the three likeliest classes is from that of `predict`."""
    found: dict[str, float] = {}
    for one in Classifier.load(bundle).predict(files, top=3):
        assert not one.error, one
        theirs = [float(rows[one.path.name][f"probability_{place}"]) for place in (1, 2, 3)]
        found[one.path.name] = max(abs(ours - other) for (_, ours), other in zip(one.classes, theirs, strict=True))
    return found
