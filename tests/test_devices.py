"""Slots: what the options ask for, and what "auto" finds."""

import os
import platform
from dataclasses import replace

import pytest
import torch

from tuning import StudyError
from tuning.devices import Slot, slots


def test_a_cpu_has_a_single_threaded_slot_per_core() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    one = Slot(threads=1, host=platform.node())
    assert slots("cpu", None) == [one] * cores
    assert slots("cpu", 5 * cores) == [one] * 5 * cores
    assert slots("cpu", 1) == [replace(one, threads=cores)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_refused_with_those_that_exist() -> None:
    with pytest.raises(StudyError, match=r"--device cuda .*--device cpu"):
        slots("cuda", None)
