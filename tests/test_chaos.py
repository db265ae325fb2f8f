"""Whole studies under random signals: half a minute of what `tests/stress/chaos.py` does for an hour.

The signals and their times are drawn from a seed. What they hit depends on the machine; the result must not.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from studies import HERE, Tiny, one_core, prepare, steady_threads

if os.name == "nt":
    pytest.skip("needs POSIX signals", allow_module_level=True)

from tests.stress.chaos import Epochs, faults
from tests.stress.monkey import Tally, disturb, strikes
from tests.stress.sameness import essence

TRIALS = 5


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def struck(study: Tiny, seed: int, *, times: int, pause: float) -> Tally:
    """Run the command to its end, restarting it as often as necessary."""
    study.results.mkdir(parents=True, exist_ok=True)
    epochs = Epochs(folder=study.study_folder)
    tally = disturb(
        [[sys.executable, str(HERE / "study.py"), *study.arguments()]],
        itertools.islice(strikes([seed], pause=pause, sleep=2.0), times),
        log=study.results / "output.txt",
        limit=300.0,
        inspect=epochs.inspect,
    )
    epochs.inspect()
    assert epochs.again == 0, "a finished epoch was trained again"
    assert tally.struck
    return tally


@pytest.mark.long
def test_struck_at_random_it_equals_an_undisturbed_study(tiny: Tiny, tmp_path: Path) -> None:
    options = ("--workers", "1", "--trials", str(TRIALS))
    whole, broken = tiny.at(tmp_path / "whole", *options), tiny.at(tmp_path / "broken", *options)
    with steady_threads():
        assert whole.command().code == 0
    tally = struck(broken, 7, times=4, pause=3.0)
    assert faults(broken.study_folder, TRIALS, tally) == []
    assert essence(broken.trials()) == essence(whole.trials())


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_struck_at_random_two_workers_leave_a_whole_study(tiny: Tiny, tmp_path: Path, seed: int) -> None:
    study = tiny.at(tmp_path, "--workers", "2", "--trials", "16")
    tally = struck(study, seed, times=15, pause=8.0)
    assert faults(study.study_folder, 16, tally) == []
