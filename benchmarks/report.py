"""What a report costs: seconds and bytes, for a study of 40, of 1,000 and of 5,000 trials, beside the dashboard's own.

    python benchmarks/report.py
    python benchmarks/report.py --trials 5000 --dashboard

The studies are those of `made_up.py`; `--keep DIR` leaves them there to be looked at. `--dashboard` serves the same
study with optuna-dashboard and asks for what its first page asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.stress.made_up_studies import fill
from tuning.folder import sqlite_url


def main() -> None:
    """Makes the studies, writes their reports, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[40, 1000, 5000])
    parser.add_argument("--dashboard", action="store_true", help="measure optuna-dashboard on the same studies")
    parser.add_argument("--keep", type=Path, help="where the studies and reports are left")
    chosen = parser.parse_args()
    print("| trials | report s | of it loading s | CPU s | report.html kB | plots/ kB | database MB | dashboard |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for count in chosen.trials:
            folder = (chosen.keep or Path(scratch)) / f"made-up-{count}"
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "study.db").exists():
                fill(folder, count)
            print(_row(folder, count, dashboard=chosen.dashboard), flush=True)


def _row(folder: Path, count: int, *, dashboard: bool) -> str:
    """Measures in a new process each, as a user starts them."""
    script = (
        "import sys, time; begun = time.perf_counter(); from pathlib import Path; import optuna; "
        "study = optuna.load_study(study_name='made-up', storage=sys.argv[1]); "
        "study.get_trials(deepcopy=False); loaded = time.perf_counter(); "
        "from reporting import page; page.write(study, Path(sys.argv[2])); "
        "print(loaded - begun, time.perf_counter() - begun, time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, sqlite_url(folder), str(folder)],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    loading, whole, busy = map(float, done.stdout.split())
    size = (folder / "report.html").stat().st_size / 1000
    plots = sum(path.stat().st_size for path in (folder / "plots").iterdir()) / 1000
    database = (folder / "study.db").stat().st_size / 1e6
    served = _dashboard(folder) if dashboard else "-"
    seconds = f"{whole:.1f} | {loading:.1f} | {busy:.1f}"
    return f"| {count:,} | {seconds} | {size:,.0f} | {plots:,.0f} | {database:.1f} | {served} |"


def _dashboard(folder: Path) -> str:
    """Seconds and bytes of the study's data, asked for twice, and of the importances."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), sqlite_url(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                summaries = json.loads(_get(port, "/api/studies")[0])["study_summaries"]
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.2)
        at = f"/api/studies/{summaries[0]['study_id']}"
        body, first = _get(port, at)
        _, again = _get(port, at)
        _, importances = _get(port, f"{at}/param_importances")
        return f"{len(body) / 1e6:.1f} MB in {first:.1f} s, again {again:.1f} s; importances {importances:.1f} s"
    finally:
        server.terminate()
        server.wait(30)


def _get(port: int, path: str) -> tuple[bytes, float]:
    begun = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=300) as answer:
        body = answer.read()
    return body, time.perf_counter() - begun


if __name__ == "__main__":
    main()
