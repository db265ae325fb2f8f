"""The command line: `python study.py` runs a study, the other commands use its results.

Every worker process runs this file again, so it imports nothing heavy; each command imports what it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import Box

from commands.check_data import check_data
from commands.clean import clean
from commands.dashboard import dashboard
from commands.export import export
from commands.interrupt import interruptible
from commands.output import lasting_output
from commands.predict import predict
from commands.report import report
from commands.retrain import retrain
from commands.run import run
from data import DataError
from model.limits import cpu_quota, cpus
from tuning import StudyError

_NO_BOX = Box("\n".join(["    "] * 8))

app = App(
    name="study.py",
    help="""Find the best small CNN for your own pictures.

    One folder of pictures per class in, an Optuna study out. After any interruption, run the same command again to
    resume.
    """,
    usage="Usage: python study.py [COMMAND] [OPTIONS]",
    version_flags=[],
    help_format="markdown",
    help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=_NO_BOX, border_style="bold", padding=(0, 0, 0, 3))),
)
app.default(run)
for command, arguments in (
    (retrain, "[OPTIONS]"),
    (export, "[OPTIONS]"),
    (predict, "PICTURE-OR-FOLDER ... [OPTIONS]"),
    (report, "[OPTIONS]"),
    (dashboard, "[OPTIONS]"),
    (check_data, "[OPTIONS]"),
    (clean, "[NAME ...] [OPTIONS]"),
):
    name = command.__name__.replace("_", "-")
    app.command(command, name=name, usage=f"Usage: python study.py {name} {arguments}")


def main(argv: Sequence[str] | None = None, **injected: Any) -> None:
    """Run a command; an error that the user can fix is printed as one line, and the exit code is 2.

    `injected` holds values of parameters that are not options, such as `make_workers`, for the commands that have them.
    """
    with lasting_output(), interruptible():
        _main(argv, injected)


def _main(argv: Sequence[str] | None, injected: Mapping[str, Any]) -> None:
    if cpu_quota() < (os.cpu_count() or 1):  # torch and numpy know nothing of it, and would start a thread per core
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus()))
    try:
        words = sys.argv[1:] if argv is None else argv
        command, bound, accepted = app.parse_args(words, exit_on_error=False, print_error=False)
        given = {name: value for name, value in injected.items() if name in accepted}
        command(*bound.args, **bound.kwargs, **given)
    except (DataError, StudyError) as error:
        message = str(error)
    except CycloptsError as error:
        from commands.mistyped import explain
        from tuning.database import without_password

        message = without_password(explain(error, app))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    else:
        return
    from model.files import printable

    print(f"error: {printable(message)}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
