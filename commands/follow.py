"""Follows a run in the terminal: shows its events, and stops it on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from types import FrameType

import optuna
from rich.console import Console

from commands.console import Screen, print_runs
from commands.options import argv
from selection import finalists, pruner_audit, retraining
from selection.fixed_runs import Follow, expected_seconds
from tuning.coordinator import Coordinator
from tuning.events import StudyEvent
from tuning.session import Session
from tuning.settings import command_line
from tuning.trials import count_trials, read_trials

TITLES = {finalists.KIND: "Finalists", retraining.FINAL_RUNS: "Final runs", pruner_audit.KIND: "Pruner audit"}
"""Headings of fixed runs by their kind."""


def follow(
    stop: Callable[[], None],
    run: Generator[StudyEvent],
    screen: Screen,
    receive: Callable[[StudyEvent], None] = lambda event: None,
) -> int | None:
    """Show the events of `run` until it ends, and call `stop` on each signal.

    Returns the number of the signal that stopped the run, or None. A signal that this process was started to ignore, as
    a script's shell does with SIGINT for what it starts in the background, stays ignored.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop()

    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in heeded}
    try:
        # Closed however the loop ends: workers ignore the SIGTERM with which Python would end them, and it would wait.
        with screen, closing(run):
            for event in run:
                screen.show(event)
                receive(event)
                if received:
                    screen.print_stopping()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return received[0] if received else None


@contextmanager
def resumable(console: Console) -> Generator[None]:
    """Print how to resume if Ctrl-C interrupts what the body computes in this process."""
    try:
        yield
    except KeyboardInterrupt:
        _print_resume(console)
        raise


def _print_resume(console: Console) -> None:
    console.print(f"Resume: {command_line(argv())}", markup=False, soft_wrap=True)


def follow_runs(console: Console, session: Session) -> Follow:
    """Return a `Follow` that shows fixed runs and, if a signal interrupts them, exits with its code."""

    def show(kind: str, study: optuna.Study, coordinator: Coordinator) -> None:
        wanted = coordinator.wanted
        expected = expected_seconds(study) / wanted
        print_runs(console, TITLES[kind], wanted, session, expected)
        trials = wanted + count_trials(read_trials(study))
        screen = Screen(console, study, trials=trials, slots=len(session.slots), expected=expected, searches=False)
        received = follow(coordinator.stop, coordinator.run(), screen)
        if received is not None:
            _print_resume(console)
            raise SystemExit(128 + received)

    return show
