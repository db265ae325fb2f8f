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
        """Whether there have been more kills since this number was read."""
        return self.place is not None and (_count(self.place) or 0) > self.count


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
