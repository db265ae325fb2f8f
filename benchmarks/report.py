"""Time and size of reports on studies of 40, 1,000 and 5,000 trials, compared with optuna-dashboard.

    python benchmarks/report.py
    python benchmarks/report.py --trials 5000 --dashboard

The studies are made up (`tests/stress/made_up_studies.py`). `--dashboard` serves each of them with optuna-dashboard and
makes the same requests as its first page.
"""

import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring
from tests.stress.made_up_studies import fill
from tests.stress.script import ROOT, header, row, run
from tuning.folder import sqlite_url

SCRIPT = """
import sys, time
began = time.perf_counter()
from pathlib import Path
import optuna
study = optuna.load_study(study_name="made-up", storage=sys.argv[1])
study.get_trials(deepcopy=False)
loaded = time.perf_counter()
from reporting import page
page.write(study, Path(sys.argv[2]))
print(loaded - began, time.perf_counter() - began, time.process_time())
"""
"""Program that writes a report, run in a fresh process as `study.py report` is."""


def main(*, trials: tuple[int, ...] = (40, 1000, 5000), dashboard: bool = False, keep: Path | None = None) -> None:
    """Write the reports and print a table.

    Parameters
    ----------
    trials
        Trials of each study.
    dashboard
        Measure optuna-dashboard on the same studies.
    keep
        Folder in which studies and reports are kept.
    """
    header("trials", "report s", "loading s", "CPU s", "report.html kB", "plots/ kB", "database MB", "dashboard")
    with tempfile.TemporaryDirectory() as scratch:
        for count in trials:
            folder = (keep or Path(scratch)) / f"made-up-{count}"
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "study.db").exists():
                fill(folder, count)
            command = [sys.executable, "-c", SCRIPT, sqlite_url(folder), str(folder)]
            output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            loading, whole, busy = (f"{float(seconds):.1f}" for seconds in output.split())
            page = (folder / "report.html").stat().st_size / 1000
            plots = sum(path.stat().st_size for path in (folder / "plots").iterdir()) / 1000
            database = (folder / "study.db").stat().st_size / 1e6
            served = first_page(folder) if dashboard else "-"
            row(f"{count:,}", whole, loading, busy, f"{page:,.0f}", f"{plots:,.0f}", f"{database:.1f}", served)


def first_page(folder: Path) -> str:
    """Return bytes and seconds of the study's data, requested twice, and the seconds of the importances."""
    with measuring.dashboard(folder, "made-up") as page:
        study = page.replace("/dashboard/", "/api/")
        body, first = _get(study)
        _, again = _get(study)
        _, importances = _get(f"{study}/param_importances")
    return f"{len(body) / 1e6:.1f} MB in {first:.1f} s, again {again:.1f} s; importances {importances:.1f} s"


def _get(address: str) -> tuple[bytes, float]:
    began = time.perf_counter()
    with urllib.request.urlopen(address, timeout=300) as response:
        body = response.read()
    return body, time.perf_counter() - began


if __name__ == "__main__":
    run(main)
