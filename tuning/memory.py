"""Whether the kernel has killed for want of memory. Its victim cannot say so, and ends by SIGKILL as if by hand.

Linux counts such kills: per control group, in memory.events (in version 1 in memory.oom_control), and for the whole
machine in /proc/vmstat. See cgroup-v2.rst and cgroup-v1/memory.rst of the kernel's documentation.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

COUNTER = "oom_kill"
FIRST_VICTIM = 500
"""Added to a worker's share of the memory, in thousandths, where the kernel looks for a victim: an epoch is lost with a
worker, and with a coordinator or a desktop more."""


@dataclass(frozen=True)
class Kills:
    """How often the kernel had killed for want of memory, where a process is counted, when this was read."""

    place: Path | None
    """The file that counts; None on a system that has none."""
    count: int

    @classmethod
    def around(cls, pid: int, root: Path = Path("/")) -> Kills:
        """As it stands now for a process that lives."""
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
        """Whether there have been more since."""
        return self.place is not None and (_count(self.place) or 0) > self.count


def offer_first() -> None:
    """Where memory runs out, the kernel takes this process before others. Does nothing where it takes no advice."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_VICTIM))


def _count(place: Path) -> int | None:
    """The counter in a file of names and numbers; None where it has none."""
    with contextlib.suppress(OSError):
        for line in place.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == COUNTER:
                return int(number)
    return None
