"""The commands with `--ray`, as processes: what they print, and what is left when they or the head are killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from clusters import Nodes, cluster
from studies import Tiny, gone, one_core, prepare, until

from tests.stress.sameness import essence
from tuning.trials import Trial

pytestmark = pytest.mark.long
TRIALS = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster("a") as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A study of one local worker with one thread, which is what a node's worker has."""
    study = tiny.at(tmp_path_factory.mktemp("undisturbed"), "--workers", "1", "--trials", str(TRIALS))
    with one_core(), study.start() as running:
        assert running.end() == 0, running.text
    return study


def on(study: Tiny, results: Path, nodes: Nodes) -> Tiny:
    return study.at(results, "--ray", nodes.address, "--trials", str(TRIALS))


def test_a_study_with_its_audit_and_retraining_run_on_the_cluster(tiny: Tiny, nodes: Nodes, tmp_path: Path) -> None:
    study = on(tiny, tmp_path, nodes)
    nodes.add("b")
    try:
        with study.start("--trials", "6", "--scheduler", "promote", "--audit-pruner", "1") as running:
            assert running.end() == 0, running.text
            text = running.text
        assert "2 at once on cpu of 2 machines" in text and "on a" in text and "on b" in text
        assert "6 trials: all trials are done." in text and "ray" not in text.replace("--ray", "").casefold()
        assert {Trial(trial).host for trial in study.trials() if Trial(trial).counts} == {"a", "b"}
        arguments = ["--finalists", "1", "--seeds", "1", "--longer", "1", "--ray", nodes.address]
        with study.start(argv=study.after("retrain", *arguments)) as running:
            assert running.end() == 0, running.text
        assert {Trial(trial).host for trial in study.trials("tiny-retrained")} <= {"a", "b"}
    finally:
        nodes.remove("b")


def test_a_killed_command_leaves_no_worker_and_is_resumed(
    tiny: Tiny, nodes: Nodes, undisturbed: Tiny, tmp_path: Path
) -> None:
    study = on(tiny, tmp_path, nodes)
    with study.start() as running:
        running.until(lambda: study.running(1), "an epoch of the second trial")
        workers = nodes.workers("a")
        running.process.kill()
        running.end()
    assert workers
    until(lambda: all(gone(worker) for worker in workers), "the end of the workers")
    with study.start() as running:
        assert running.end() == 0, running.text
    assert essence(study.trials()) == essence(undisturbed.trials())


def test_the_death_of_the_head_is_one_line_and_the_study_is_resumed(
    tiny: Tiny, undisturbed: Tiny, tmp_path: Path
) -> None:
    study = tiny.at(tmp_path, "--trials", "200")
    with ExitStack() as stack:
        nodes = stack.enter_context(cluster("a"))
        with study.start("--ray", nodes.address) as running:
            running.until(lambda: study.running(1), "an epoch of the second trial")
            nodes.kill_head()
            assert running.end() == 2
            (error,) = [line for line in running.text.splitlines() if "error" in line.casefold()]
            assert nodes.address in error and "run the same command again to resume" in error
            assert "Traceback" not in running.text
        children: list[psutil.Process] = nodes.workers("a")
    until(lambda: all(gone(worker) for worker in children), "the end of the workers")
    done = len([trial for trial in study.trials() if Trial(trial).counts])
    assert done >= 1
    with cluster("b") as other, study.start("--ray", other.address, "--trials", str(done + 2)) as running:
        assert running.end() == 0, running.text
    trials = study.trials()
    assert sum(Trial(trial).counts for trial in trials) == done + 2
    assert essence(trials)[:TRIALS] == essence(undisturbed.trials())[:TRIALS]


def test_an_address_without_a_cluster_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    with tiny.at(tmp_path).start("--ray", "127.0.0.1:1") as running:
        assert running.end() == 2
    assert running.text.startswith("error: cannot join the Ray cluster at 127.0.0.1:1")
    assert running.text.count("\n") == 1
