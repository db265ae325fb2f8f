"""The log of test-set evaluations: each one after the first makes the test accuracy a little more optimistic.

One line per evaluation in `results/test-set-uses.tsv`, beside the studies, because another study of the same pictures
uses the same test set. The line is written before the evaluation. Evaluating the same networks again, or the recipes,
is not logged, because nothing is chosen by the result. A pretrained network is logged: it may be chosen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from itertools import takewhile
from pathlib import Path

import filelock

from model.files import why
from tuning import StudyError

FILE = "test-set-uses.tsv"
EARLIER_FILE = "test-looks.tsv"
"""Name of the log in earlier versions, with the same format."""


@dataclass(frozen=True)
class TestSetUse:
    """One logged evaluation on a test set."""

    __test__ = False  # not a test class of pytest

    fingerprint: str
    """Fingerprint of the pictures."""
    networks: str
    """Key of the networks that were evaluated together."""
    study: str
    when: str
    """Date and time of the evaluation, in ISO format."""


@contextlib.contextmanager
def log_locked(results: Path) -> Generator[None]:
    """Lock the log, so that no other process writes to it meanwhile. Raises StudyError."""
    try:
        with filelock.FileLock(results / "test-set-uses.lock", timeout=60):
            if (results / EARLIER_FILE).exists() and not (results / FILE).exists():
                (results / EARLIER_FILE).rename(results / FILE)
            yield
    except (filelock.Timeout, OSError) as error:
        raise StudyError(
            f"cannot lock {results / FILE}, the log of test-set evaluations ({error}): wait for the other study to "
            "release it, or make the folder writable"
        ) from error


def all_uses(results: Path, fingerprint: str) -> list[TestSetUse]:
    """Return the logged evaluations on the test set of these pictures, oldest first. Raises StudyError."""
    path = results / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read {path}, the log of test-set evaluations ({why(error)}): repair it") from error
    rows = [line.split("\t") for line in lines]
    return [TestSetUse(*row) for row in rows if len(row) == len(fields(TestSetUse)) and row[0] == fingerprint]


def uses_by_others(results: Path, fingerprint: str, networks: str) -> list[TestSetUse]:
    """Return the evaluations of other networks before the first one of `networks`, or all of them if it has none."""
    return list(takewhile(lambda use: use.networks != networks, all_uses(results, fingerprint)))


def already_tested(results: Path, fingerprint: str, networks: str) -> bool:
    """Return whether these networks have been evaluated before; another evaluation would give the same result."""
    return any(use.networks == networks for use in all_uses(results, fingerprint))


def log_allowed_use(
    results: Path, fingerprint: str, networks: str, study: str, *, retest: bool, beside: str | None = None
) -> list[TestSetUse] | None:
    """Log an evaluation if it may be made, and return the evaluations of other networks before it.

    Returns None, and logs nothing, if others have been evaluated before and these have not, unless `retest`. `beside`
    are networks that these are compared with, and do not count as others. Raises StudyError if the log cannot be used.
    """
    with log_locked(results):
        earlier = [use for use in uses_by_others(results, fingerprint, networks) if use.networks != beside]
        if earlier and not retest and not already_tested(results, fingerprint, networks):
            return None
        log_use(results, fingerprint, networks, study)
        return earlier


def log_use(results: Path, fingerprint: str, networks: str, study: str) -> None:
    """Append an evaluation to the log and flush it to disk; the same networks are logged once. Raises StudyError."""
    if already_tested(results, fingerprint, networks):
        return
    use = TestSetUse(fingerprint, networks, study, datetime.now().isoformat(timespec="seconds"))
    try:
        with (results / FILE).open("a+b") as file:
            file.seek(0)
            # A line that a full disk has cut off must not swallow this one.
            torn = not (file.read() or b"\n").endswith(b"\n")
            file.write(b"\n" * torn + "\t".join(astuple(use)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StudyError(
            f"cannot write {results / FILE}, the log of test-set evaluations ({error.strerror}): make it writable or "
            "free some disk space, then run the same command again to resume"
        ) from error
