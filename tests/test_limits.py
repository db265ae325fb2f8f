"""Limits: how many CPUs and how much memory the control groups and the affinity mask around a process leave it."""

from __future__ import annotations

import ast
import contextlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import study
from model import limits
from model.limits import cpu_quota, cpus, describe_cpus, memory
from tuning.devices import slots

HERE = Path(__file__).parents[1]
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "36 30 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
UNLIMITED_V1 = "9223372036854771712"


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write the files of a kernel under `root`; return it."""
    for path, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        # Version 2: in a container, the mount is the container's group; in a service, a slice around it may be tighter.
        ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        (
            "0::/a.slice/b.service\n",
            V2,
            {
                "sys/fs/cgroup/a.slice/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000",
            },
            1.5,
        ),
        # The group itself has no CPU controller, or is not visible in the container, or is outside of its namespace.
        ("0::/a/b\n", V2, {"sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/of/the/host\n", V2, {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/../other\n", V2, {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        # Version 1: in groups named together, under a mount that shows only the container's part, and unlimited.
        (
            "4:cpu,cpuacct:/me\n",
            V1,
            {
                "sys/fs/cgroup/cpu,cpuacct/me/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/me/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            "4:cpu,cpuacct:/docker/1\n0::/\n",
            V2 + V1.replace(" / ", " /docker/1 "),
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000\n",
            },
            2.0,
        ),
        # Elsewhere, in a folder with a blank.
        ("0::/\n", V2.replace("/sys/fs/cgroup", r"/my\040groups"), {"my groups/cpu.max": "400000 100000"}, 4.0),
        # No control groups; files that no kernel writes.
        ("", "", {}, math.inf),
        ("0\n", "nothing - \n" + V2, {"sys/fs/cgroup/cpu.max": "much\n"}, math.inf),
    ],
)
def test_the_quota_is_read_where_the_kernel_has_it(
    groups: str, mounts: str, files: dict[str, str], expected: float, tmp_path: Path
) -> None:
    root = machine(tmp_path, groups, mounts, files)
    assert cpu_quota(root) == expected
    assert cpus(root) == max(1, min(cpus(tmp_path / "nothing"), math.ceil(min(expected, 10**6))))


limited = st.none() | st.integers(1000, 10**9)


@settings(max_examples=30)
@given(st.lists(st.tuples(limited, limited), min_size=1, max_size=5), st.booleans(), st.data())
def test_the_tightest_of_all_groups_around_a_process_holds(
    levels: list[tuple[int | None, int | None]], version2: bool, data: st.DataObject
) -> None:
    """Any depth, in both versions; a mount may show only the inner part, whose limits are all that can be known."""
    hidden = data.draw(st.integers(0, len(levels) - 1), "hidden levels")
    path = "/" + "/".join(f"g{depth}" for depth in range(1, len(levels)))
    shown = "/" + "/".join(f"g{depth}" for depth in range(1, hidden + 1))
    files: dict[str, str] = {}
    for depth, (quota, most) in enumerate(levels[hidden:], hidden):
        inner = "/".join(f"g{level}" for level in range(hidden + 1, depth + 1))
        if version2:
            files[f"sys/fs/cgroup/{inner}/cpu.max"] = f"{'max' if quota is None else quota} 100000\n"
            files[f"sys/fs/cgroup/{inner}/memory.max"] = f"{'max' if most is None else most}\n"
        else:
            files[f"sys/fs/cgroup/cpu,cpuacct/{inner}/cpu.cfs_quota_us"] = f"{-1 if quota is None else quota}\n"
            files[f"sys/fs/cgroup/cpu,cpuacct/{inner}/cpu.cfs_period_us"] = "100000\n"
            files[f"sys/fs/cgroup/memory/{inner}/memory.limit_in_bytes"] = f"{most or UNLIMITED_V1}\n"
    groups = f"0::{path}\n" if version2 else f"3:memory:{path}\n2:cpu,cpuacct:{path}\n"
    mounts = (V2 if version2 else V1 + V1_MEMORY).replace(" / ", f" {shown} ")
    with tempfile.TemporaryDirectory() as folder:
        root = machine(Path(folder), groups, mounts, files)
        quotas = [quota for quota, _ in levels[hidden:] if quota is not None]
        amounts = [most for _, most in levels[hidden:] if most is not None]
        assert cpu_quota(root) == min((quota / 100_000 for quota in quotas), default=math.inf)
        assert memory(root) == min(amounts, default=math.inf if version2 else int(UNLIMITED_V1))


@settings(max_examples=30)
@given(st.text(), st.text(), st.text())
def test_no_text_in_the_kernels_files_is_an_error(groups: str, mounts: str, content: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path, text in {
            "proc/self/cgroup": f"0::/\n{groups}",
            "proc/self/mountinfo": f"{V2}{mounts}",
            "sys/fs/cgroup/cpu.max": content,
            "sys/fs/cgroup/memory.max": content,
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(text.encode("utf-8", errors="surrogatepass"))
        assert cpus(root) >= 1
        assert memory(root) >= 0


def test_fewer_cpus_than_one_sees_are_said_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(limits, "_allowed_cpus", lambda: 64)
    assert describe_cpus(tmp_path) is None
    root = machine(tmp_path, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "200000 100000"})
    assert describe_cpus(root) == "2 of 64 CPUs (quota of this container)"
    (root / "sys/fs/cgroup/cpu.max").write_text("150000 100000")
    assert describe_cpus(root) == "2 of 64 CPUs (quota of this container: 1.5)"
    monkeypatch.setattr(limits, "_allowed_cpus", lambda: 1)
    said = describe_cpus(root)
    assert said and said.startswith("1 of 64 CPUs") and "quota" not in said


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Bind this process to one CPU, as taskset, a cpuset or a batch system does."""
    if not hasattr(os, "sched_setaffinity") or len(before := os.sched_getaffinity(0)) == 1:
        pytest.skip("the affinity mask cannot be narrowed here")
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_cpu")
def test_a_process_bound_to_one_cpu_has_one_slot() -> None:
    assert cpus() == 1
    (slot,) = slots("cpu", None)
    assert (slot.device, slot.threads) == ("cpu", 1)
    assert str(describe_cpus()).startswith("1 of ")


def test_a_real_quota_is_found_by_a_process_in_a_group_within() -> None:
    """The process's own group has no limit, the one around it half a CPU."""
    files = ("cpu.max", "cpu.cfs_quota_us")
    around = next((group for group in limits.groups("cpu") if any((group / name).exists() for name in files)), None)
    if around is None:
        pytest.skip("no control group with a CPU controller here")
    outer = around / f"mushroom-study-test-{os.getpid()}"
    inner = outer / "inner"
    try:
        try:
            inner.mkdir(parents=True)
            v2 = (outer / "cpu.max").exists()
            (outer / files[not v2]).write_text("50000 100000" if v2 else "50000")
        except OSError as error:
            pytest.skip(f"no control group can be made here ({error.strerror})")
        asked = "from model.limits import *; print(cpu_quota(), cpus())"
        moved = f'echo $$ > "{inner}/cgroup.procs" && exec "{sys.executable}" -c "{asked}"'
        answer = subprocess.run(["sh", "-c", moved], cwd=HERE, capture_output=True, text=True, check=True).stdout
        assert answer.split() == ["0.5", "1"]
    finally:
        for group in (inner, outer):
            with contextlib.suppress(OSError):
                group.rmdir()


def test_under_a_quota_libraries_start_no_thread_per_core(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch reads the variable when it is imported, which a command does later; one that is set is left alone."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study.main(["clean", "--help"])
    assert os.environ.get("OMP_NUM_THREADS") == (str(cpus()) if cpu_quota() < (os.cpu_count() or 1) else None)
    monkeypatch.setattr(study, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(study, "cpus", lambda: 1)
    study.main(["clean", "--help"])
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    study.main(["clean", "--help"])
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "clean" in capsys.readouterr().out


def test_one_module_asks_the_machine_for_its_cpus_and_no_pool_has_a_default_size() -> None:
    """A pool's default size is the number of CPUs of the machine, whatever this process may use."""
    rooms = ("commands", "reporting", "selection", "tuning", "data", "model")
    for file in [HERE / "study.py", *(path for room in rooms for path in (HERE / room).rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and file.name not in ("limits.py", "study.py"):
                assert node.attr not in ("cpu_count", "sched_getaffinity", "process_cpu_count"), f"{file}: {node.attr}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("PoolExecutor", ".Pool")):
                assert node.args or node.keywords, f"{file}: {ast.unparse(node)}"
