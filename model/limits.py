"""Limits on what this process may use of its machine: CPUs and memory.

A container, a service or a batch job sees all CPUs and all memory of the machine, but the kernel lets it use less: the
control groups (version 1, 2 or both) around a process limit its CPU time and memory, its affinity mask limits its CPUs.
A file under /proc says in which groups a process is, another one where they are mounted. See proc(5), cgroup-v2.rst,
and sched-bwc.rst and cgroup-v1/memory.rst of the kernel's documentation.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def cpus(root: Path = ROOT) -> int:
    """Return the number of CPUs that this process can keep busy; `root` is the folder that holds /proc and /sys.

    A quota that is no whole number is rounded up, as joblib and Go do: of 1.5 CPUs' time a single thread would leave a
    third unused.
    """
    return max(1, math.ceil(min(_allowed_cpus(), cpu_quota(root))))


def cpu_quota(root: Path = ROOT) -> float:
    """Return the CPU time per second that the groups around this process may use together; infinite without a limit."""
    quotas = [math.inf]
    for group in groups("cpu", root):
        match _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us"):
            case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
                quotas.append(int(quota) / int(period))
            case _:  # "max" or -1, no limit of this group; or no such group
                pass
    return min(quotas)


def memory(root: Path = ROOT) -> float:
    """Return the bytes of memory that the groups around this process may use together; infinite without a limit."""
    limits = [math.inf]
    for group in groups("memory", root):
        for word in _words(group / "memory.max") or _words(group / "memory.limit_in_bytes"):
            if word.isdecimal():
                limits.append(int(word))
    return min(limits)


def describe_cpus(root: Path = ROOT) -> str | None:
    """Return how many of the machine's CPUs this process uses and why; None if it uses all."""
    there, used, quota = os.cpu_count() or 1, cpus(root), cpu_quota(root)
    if used >= there:
        return None
    if used == _allowed_cpus():
        return f"{used} of {there} CPUs (this process may not run on the others)"
    return f"{used} of {there} CPUs (quota of this container{'' if used == quota else f': {quota:.3g}'})"


def groups(controller: str, root: Path = ROOT, process: int | str = "self") -> Iterator[Path]:
    """Yield the folders of a process's control groups for a controller, from its own to the outermost visible one.

    There are two of each where version 1 and 2 are mounted beside each other; the files of a controller are in one.
    Limits of an outer group hold for all groups within it.
    """
    inside: dict[str, PurePosixPath] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / f"proc/{process}/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            inside |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for mount, shown, point in _mounts(controller, root):
        own = inside.get(controller if mount == "cgroup" else "")
        if own is None:
            continue
        # Inside a container the group's path may be that of the host, of which only a part, or nothing, is mounted.
        seen = own.relative_to(shown) if own.is_relative_to(shown) and ".." not in own.parts else PurePosixPath()
        yield from (root / point.lstrip("/") / part for part in (seen, *seen.parents))


def _mounts(controller: str, root: Path) -> Iterator[tuple[str, PurePosixPath, str]]:
    """Yield type, root within the hierarchy, and mount point of every mount that can have a controller's files."""
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, kind = line.partition(" - ")
            place, (name, *_, options) = [_unescaped(word) for word in mount.split(" ")], kind.split(" ")
            if name == "cgroup2" or (name == "cgroup" and controller in options.split(",")):
                yield name, PurePosixPath(place[3]), place[4]


def _unescaped(word: str) -> str:
    """Return a word of mountinfo with its octal escapes of blanks and backslashes replaced."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _allowed_cpus() -> int:
    """Return the number of CPUs of the affinity mask, which a cpuset, taskset or a batch system sets."""
    count = getattr(os, "process_cpu_count", None)  # since Python 3.13; it heeds PYTHON_CPU_COUNT as well
    if count is None and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return (count or os.cpu_count)() or 1


def _words(file: Path) -> list[str]:
    """Return the words in a file of the kernel; none if it cannot be read."""
    with contextlib.suppress(OSError):
        return file.read_text().split()
    return []
