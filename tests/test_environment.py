"""The facts about a machine that decide a trial's numbers, and what differs between two machines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tuning.devices import Slot
from tuning.environment import commit, differences, environment, versions


def test_the_environment_names_what_decides_the_numbers() -> None:
    slot = Slot(threads=3, precision="bfloat16")
    facts = environment(slot)
    assert facts.items() >= versions().items()
    assert set(facts) == {"device", "threads", "precision", "program", "python", "torch", "numpy", "pillow"}
    assert (facts["threads"], facts["precision"]) == ("3", "bfloat16")
    assert torch.__version__.startswith(facts["torch"])
    assert torch.backends.cpu.get_cpu_capability() in facts["device"]
    assert differences(facts, environment(slot)) == []


def test_what_differs_is_named_with_both_values() -> None:
    then = {"device": "Zen 3", "threads": "1", "torch": "2.15.0"}
    now = {"device": "H100", "threads": "1", "numpy": "2.4"}
    assert differences(then, now) == ["device Zen 3 -> H100", "numpy unknown -> 2.4", "torch 2.15.0 -> unknown"]


def test_the_commit_of_a_program_and_whether_it_was_changed(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    assert commit(tmp_path) is None

    def git(*words: str) -> str:
        me = ["-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *me, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init")
    (tmp_path / "study.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD").strip()
    assert commit(tmp_path) == head
    git("tag", "v1")
    (tmp_path / "study.py").write_text("2")
    assert commit(tmp_path) == head + "+"
