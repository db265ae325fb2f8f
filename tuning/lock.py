"""The lock of a study: one coordinator at a time."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Generator
from datetime import datetime
from pathlib import Path

import filelock

from tuning import StudyError


@contextlib.contextmanager
def sole_coordinator(folder: Path) -> Generator[None]:
    """Hold the lock of the study in `folder`; the operating system releases it however the process ends.

    Raises StudyError if another process holds it, naming that process, or if the folder cannot be written.
    """
    owner = folder / "study.owner"
    lock = filelock.FileLock(folder / "study.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        holder = "another process"
        with contextlib.suppress(OSError):
            holder = owner.read_text().strip()
        raise StudyError(
            f"{folder} is in use by {holder}: wait for it, stop it, or start another study with --study NAME"
        ) from None
    except OSError as error:
        raise _unwritable(Path(lock.lock_file), error) from error
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M}\n")
    except OSError as error:
        lock.release()
        raise _unwritable(owner, error) from error
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _unwritable(path: Path, error: OSError) -> StudyError:
    return StudyError(
        f"cannot write {path} ({error.strerror or error}): free or repair the disk, then run the same command again"
    )
