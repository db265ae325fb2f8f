"""How often a test part has been looked at: every look but the first makes its figures a little less honest.

A line per look in `results/test-looks.tsv`, beside the studies, because a second study of the same pictures looks at
the same test part. The line is written before the look. The same networks may look again: they see what they saw.
Recipes that a winner is only compared with are seen in its look and not counted, for nothing is chosen by them.
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

from tuning import StudyError

FILE = "test-looks.tsv"


@dataclass(frozen=True)
class Look:
    """One look at the test part."""

    fingerprint: str
    """Of the data."""
    networks: str
    """Which networks looked; equal for equal ones."""
    study: str
    when: str
    """ISO date."""


@contextlib.contextmanager
def counting(results: Path) -> Generator[None]:
    """Holds the list, so that no look is counted between reading it and writing to it. Raises StudyError."""
    try:
        with filelock.FileLock(results / "test-looks.lock", timeout=60):
            yield
    except (filelock.Timeout, OSError) as error:
        raise StudyError(
            f"looks at test parts are counted one at a time, but {results / FILE} cannot be locked ({error}); wait for "
            "the other study, or mend the folder's rights"
        ) from error


def looks(results: Path, fingerprint: str) -> list[Look]:
    """All looks at the test part of these pictures, the first one first."""
    path = results / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"looks at test parts are counted in {path}, but it cannot be read ({error}); mend it"
        ) from error
    rows = [line.split("\t") for line in lines]
    return [Look(*row) for row in rows if len(row) == len(fields(Look)) and row[0] == fingerprint]


def by_others(results: Path, fingerprint: str, networks: str) -> list[Look]:
    """The looks of other networks, up to the one of these where they have looked: what came later is not theirs."""
    return list(takewhile(lambda one: one.networks != networks, looks(results, fingerprint)))


def have_looked(results: Path, fingerprint: str, networks: str) -> bool:
    """Whether these networks have: then they may again, for they see what they saw."""
    return any(one.networks == networks for one in looks(results, fingerprint))


def count(results: Path, fingerprint: str, networks: str, study: str) -> None:
    """Writes a look down, safe on the disk before the look is taken; the same networks are counted once."""
    if have_looked(results, fingerprint, networks):
        return
    look = Look(fingerprint, networks, study, datetime.now().isoformat(timespec="seconds"))
    try:
        with (results / FILE).open("a+b") as file:
            file.seek(0)
            # A line that was torn by a full disk or a lost one ends here, so that it does not swallow this one.
            torn = not (file.read() or b"\n").endswith(b"\n")
            file.write(b"\n" * torn + "\t".join(astuple(look)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StudyError(
            f"a look at the test part is counted before it is taken, but {results / FILE} cannot be written "
            f"({error.strerror}); mend its rights or free some disk, and the same command goes on"
        ) from error
