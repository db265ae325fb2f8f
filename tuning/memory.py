"""Memory: how much may be used, and detection of the kernel's out-of-memory kills.

Such a kill looks like any other SIGKILL to the parent of the victim. Linux counts them: per control group in
memory.events (memory.oom_control in version 1), and for the whole machine in /proc/vmstat. See cgroup-v2.rst and
cgroup-v1/memory.rst of the kernel's documentation.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from model import limits

COUNTER = "oom_kill"
FIRST_VICTIM = 500
"""Worker's out-of-memory score adjustment, in thousandths of all memory: the kernel should rather kill a worker, which
loses an epoch, than the coordinator or a desktop program."""


@dataclass(frozen=True)
class Kills:
    """Number of out-of-memory kills in a process's control group at one moment."""

    place: Path | None
    """File with the counter; None on a system without one."""
    count: int

    @classmethod
    def around(cls, pid: int, root: Path = Path("/")) -> Kills:
        """Return the current number for a running process."""
        groups = limits.groups("memory", root, pid)
        places = [group / name for group in groups for name in ("memory.events", "memory.oom_control")]
        for place in (*places, root / "proc/vmstat"):
            count = _count(place)
            if count is not None:
                return cls(place, count)
        return cls(None, 0)

    @property
    def risen(self) -> bool:
        """Whether there have been more kills since this number was read."""
        return self.place is not None and (_count(self.place) or 0) > self.count


def usable_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process and its workers may use: the machine's, or its control group's."""
    return int(min(psutil.virtual_memory().total, limits.memory(root)))


def shortage(workers: int, root: Path = Path("/")) -> str | None:
    """Return a warning if this many workers cannot fit into memory, each taking as much as this process; else None.

    To be called once this process has trained or at least imported torch: a worker then needs that much before its
    first trial.
    """
    each, available = psutil.Process().memory_full_info().uss, usable_memory(root)
    fitting = max(1, available // each - 1)
    if workers <= fitting:
        return None
    return (
        f"{workers} workers need {(workers + 1) * each / 2**30:.1f} GiB of memory or more, but only "
        f"{available / 2**30:.1f} GiB can be used: if trials fail, use --workers {fitting}"
    )


def offer_first() -> None:
    """Ask the kernel to kill this process before others when memory runs out, on systems that allow it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_VICTIM))


def _count(place: Path) -> int | None:
    """Return the out-of-memory kill counter in a file of names and numbers; None if it is missing."""
    with contextlib.suppress(OSError):
        for line in place.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == COUNTER:
                return int(number)
    return None
