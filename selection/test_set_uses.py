"""The log of test-set evaluations: each one after the first makes the test accuracy a little more optimistic.

One line per evaluation in `results/test-set-uses.tsv`, beside the studies, because another study of the same pictures
uses the same test set. A test set is known by some of its pictures, as it is used up for corrected labels, more
training pictures or a part of it too. The line is written before the evaluation. Evaluating the same networks again, or
the baselines, is not logged, because nothing is chosen by the result. A pretrained network is logged: it may be chosen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from heapq import nsmallest
from pathlib import Path

import filelock

from data.prepare import Pictures
from model.files import why
from tuning import StudyError

FILE = "test-set-uses.tsv"
EARLIER_FILE = "test-looks.tsv"
"""Name of the log in earlier versions, with the same format."""
LEAST_COLUMNS = 4
"""Number of columns of a line in earlier versions."""


SAMPLE = 32
"""Number of pictures by which a test set is known: those with the smallest hashes, so that test sets that have many
pictures in common have some of these in common too: one that is a fifth of another all but certainly does."""


@dataclass(frozen=True)
class TestSet:
    """The test pictures of a study."""

    __test__ = False  # not a test class of pytest

    fingerprint: str
    """Fingerprint of all pictures of the study."""
    sample: tuple[str, ...]
    """Content hashes of SAMPLE test pictures."""

    @classmethod
    def of(cls, pictures: Pictures) -> TestSet:
        """Return the test set of these pictures."""
        kept = pictures.catalog.kept
        hashes = (kept[place].content_hash for place in pictures.split.test)
        return cls(fingerprint=pictures.catalog.fingerprint, sample=tuple(nsmallest(SAMPLE, hashes)))


@dataclass(frozen=True)
class TestSetUse:
    """One logged evaluation on a test set."""

    __test__ = False  # not a test class of pytest

    fingerprint: str
    """Fingerprint of all pictures of the study."""
    networks: str
    """Key of the networks that were evaluated together."""
    study: str
    when: str
    """Date and time of the evaluation, in ISO format."""
    sample: str = ""
    """Content hashes of some test pictures, separated by commas; empty in earlier versions."""
    beside: str = ""
    """Key of the networks that these were compared with; empty if the evaluation was their own."""

    def on(self, test_set: TestSet) -> bool:
        """Return whether this evaluation was on pictures of that test set."""
        return self.fingerprint == test_set.fingerprint or not set(test_set.sample).isdisjoint(self.sample.split(","))

    def of(self, networks: str) -> bool:
        """Return whether these networks were evaluated, be it with fewer seeds or with more."""
        return _alike(self.networks, networks)


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


def all_uses(results: Path, test_set: TestSet) -> list[TestSetUse]:
    """Return the logged evaluations on pictures of a test set, oldest first. Raises StudyError."""
    path = results / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read {path}, the log of test-set evaluations ({why(error)}): repair it") from error
    rows = [line.split("\t") for line in lines]
    uses = [TestSetUse(*row) for row in rows if LEAST_COLUMNS <= len(row) <= len(fields(TestSetUse))]
    return [use for use in uses if use.on(test_set)]


def uses_by_others(results: Path, test_set: TestSet, networks: str) -> list[TestSetUse]:
    """Return the evaluations of other networks, without those that only served as a comparison for `networks`."""
    return [use for use in all_uses(results, test_set) if not use.of(networks) and not _alike(use.beside, networks)]


def log_allowed_use(
    results: Path, test_set: TestSet, networks: str, study: str, *, retest: bool, beside: str = ""
) -> list[TestSetUse] | None:
    """Log an evaluation if it may be made, and return all evaluations of other networks.

    Returns None, and logs nothing, if others have been evaluated and these have not, unless `retest`. `beside` are
    networks that these are compared with, and do not count as others. Raises StudyError if the log cannot be used.
    """
    with log_locked(results):
        others = [use for use in uses_by_others(results, test_set, networks) if not use.of(beside)]
        if others and not retest and not _is_logged(results, test_set, networks):
            return None
        log_use(results, test_set, networks, study, beside)
        return others


def _alike(one: str, other: str) -> bool:
    """Return whether two keys are of the same networks, of which one may have more seeds; an empty key is of none."""
    one, other = f"{one} ", f"{other} "
    return min(len(one), len(other)) > 1 and (one.startswith(other) or other.startswith(one))


def _is_logged(results: Path, test_set: TestSet, networks: str) -> bool:
    """Return whether these networks have been evaluated before; another evaluation would give the same result."""
    return any(use.of(networks) for use in all_uses(results, test_set))


def log_use(results: Path, test_set: TestSet, networks: str, study: str, beside: str = "") -> None:
    """Append an evaluation to the log and flush it to disk; the same networks are logged once. Raises StudyError."""
    if _is_logged(results, test_set, networks):
        return
    when, sample = datetime.now().isoformat(timespec="seconds"), ",".join(test_set.sample)
    use = TestSetUse(test_set.fingerprint, networks, study, when, sample, beside)
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
