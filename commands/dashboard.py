"""`python study.py dashboard`: serves optuna-dashboard for a study."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Annotated

from commands.options import PLACE, ResultsOption, StorageOption, StudyOption, count, find_study
from tuning import StudyError
from tuning.folder import RESULTS


def dashboard(
    *,
    study: StudyOption = None,
    port: Annotated[int | None, count(PLACE)] = None,
    storage: StorageOption = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Browse a study, even while it runs: optuna-dashboard with the study's pictures and notes.

    It can only be reached from this machine. Press Ctrl-C to stop it.

    Parameters
    ----------
    port
        Port to serve on. By default 8080, or any free port if that is taken.
    """
    import warnings
    import webbrowser

    from commands import console as screen
    from reporting import dashboard as served

    console = screen.make_console()
    found = find_study(console, results, study, storage)
    try:
        server, address = served.make(found.study, found.folder / "artifacts", port)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise StudyError(f"cannot serve on --port {port} ({reason}): choose a free one, or omit it") from error
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", module=r"optuna\.")  # importances of a study with few trials
    with server, suppress(KeyboardInterrupt):
        console.print(f"{address}  (press Ctrl-C to stop it)", markup=False, soft_wrap=True)
        if served.on_a_desktop():
            webbrowser.open(address)
        server.serve_forever()
