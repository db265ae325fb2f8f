"""Detection of the kernel's out-of-memory kills, which look like any other SIGKILL to the parent of the victim.

Linux counts them: per control group in memory.events (memory.oom_control in version 1), and for the whole machine in
/proc/vmstat. See cgroup-v2.rst and cgroup-v1/memory.rst of the kernel's documentation.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

COUNTER = "oom_kill"
FIRST_VICTIM = 500
"""Thousandths of all memory that the kernel adds to a worker's own when it chooses a victim: killing a worker loses an
epoch, killing the coordinator or a desktop program loses more."""


@dataclass(frozen=True)
class Kills:
    """The number of out-of-memory kills in a process's control group at one time."""

    place: Path | None
    """The file with the counter; None on a system without one."""
    count: int

    @classmethod
    def around(cls, pid: int, root: Path = Path("/")) -> Kills:
        """Return the present number for a running process."""
        groups: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for line in (root / f"proc/{pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                groups |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
        base = root / "sys/fs/cgroup"
        places = [
            *[base / "memory" / path / "memory.oom_control" for path in (groups.get("memory"), "") if path is not None],
            *[base / path / "memory.events" for path in (groups.get(""), "") if path is not None],
            root / "proc/vmstat",
        ]
        for place in places:
            count = _count(place)
            if count is not None:
                return cls(place, count)
        return cls(None, 0)

    @property
    def risen(self) -> bool:
        """Whether there have been more kills since then."""
        return self.place is not None and (_count(self.place) or 0) > self.count


def offer_first() -> None:
    """Ask the kernel to kill this process before others when memory runs out, on systems where that can be asked."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_VICTIM))


def _count(place: Path) -> int | None:
    """Return the counter in a file of names and numbers; None if it is missing."""
    with contextlib.suppress(OSError):
        for line in place.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == COUNTER:
                return int(number)
    return None
