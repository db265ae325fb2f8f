"""Checkpoints: what is loaded is what was saved, and a file that is there is whole."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from model.checkpoint import FORMAT, Checkpoint, CheckpointError, load, save
from model.files import UNFINISHED
from model.network import ModelConfig, MushroomCNN
from model.training import EpochMetrics, OptimizerName, TrainingConfig, average_into, make_optimizer

ROOT = Path(__file__).parent.parent
METRICS = EpochMetrics(
    epoch=0, train_loss=1.1, train_top1=0.2, validation_loss=1.3, top1=0.6, top3=1.0, lr=0.01, seconds=1.5,
    confusion=((3, 1), (0, 2)), peak_memory=123,
)  # fmt: skip


def checkpoint(attempt: int = 1, optimizer: Any = "adamw") -> Checkpoint:
    """Return the checkpoint of a network that has made one step, so that the optimizer has a state."""
    torch.manual_seed(attempt)
    model = MushroomCNN(ModelConfig(classes=2, width=0.25)).to(memory_format=torch.channels_last)
    recipe = TrainingConfig(optimizer=optimizer, lr=0.01, schedule="cosine", epochs=1, batch_size=2)
    its_optimizer = make_optimizer(model, recipe)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    its_optimizer.step()
    averaged = copy.deepcopy(model)
    average_into(averaged, model, step=9)
    states = {"model": model.state_dict(), "averaged": averaged.state_dict(), "optimizer": its_optimizer.state_dict()}
    return Checkpoint(attempt=attempt, job_digest="c0ffee", history=(METRICS, METRICS), **states)


def assert_same(one: object, other: object) -> None:
    """Equal to the last bit, tensors with their types and memory layout."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_what_is_loaded_is_what_was_saved(optimizer: str, tmp_path: Path) -> None:
    saved = checkpoint(optimizer=optimizer)
    save(tmp_path / "last.pt", saved)
    loaded = load(tmp_path / "last.pt")
    assert (loaded.attempt, loaded.job_digest, loaded.history) == (1, "c0ffee", (METRICS, METRICS))
    assert_same(saved.model, loaded.model)
    assert_same(saved.averaged, loaded.averaged)
    assert_same(saved.optimizer, loaded.optimizer)


def test_an_optimizer_gets_its_whole_state_back_step_counters_included(tmp_path: Path) -> None:
    saved = checkpoint()
    save(tmp_path / "last.pt", saved)
    model = MushroomCNN(ModelConfig(classes=2, width=0.25))
    recipe = TrainingConfig(optimizer="adamw", lr=0.5, schedule="cosine", epochs=1, batch_size=2)
    optimizer = make_optimizer(model, recipe)
    state = load(tmp_path / "last.pt").optimizer
    assert state is not None
    optimizer.load_state_dict(state)
    assert_same(saved.optimizer, optimizer.state_dict())


def test_a_checkpoint_may_omit_the_average_and_the_optimizer(tmp_path: Path) -> None:
    save(tmp_path / "best.pt", replace(checkpoint(), averaged=None, optimizer=None))
    loaded = load(tmp_path / "best.pt")
    assert (loaded.averaged, loaded.optimizer) == (None, None)


def test_saving_replaces_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    for attempt in (1, 2):
        save(tmp_path / "last.pt", checkpoint(attempt))
    assert load(tmp_path / "last.pt").attempt == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_save_that_fails_keeps_the_old_file_and_removes_its_own(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", checkpoint())
    unwritable = replace(checkpoint(), attempt=2, model={"f": lambda: None})  # type: ignore[dict-item]
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save(tmp_path / "last.pt", unwritable)
    assert load(tmp_path / "last.pt").attempt == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


# Whatever else may lie there


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        load(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, checkpoint())
    whole = path.read_bytes()
    for length in [0, 1, 4, 100, *range(1000, len(whole), len(whole) // 50), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "damaged" in refused(path)


def test_a_flipped_bit_in_a_weight_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, checkpoint())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    damaged = bytearray(path.read_bytes())
    damaged[largest.header_offset + largest.file_size // 2 + 64] ^= 1
    path.write_bytes(damaged)
    assert "damaged" in refused(path)


class Trap:
    """Runs code when it is unpickled by anything careless."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_file_that_carries_code_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"format": FORMAT, "model": Trap(sprung)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("zip.pt", "plain.pt"):
        assert "not only tensors and plain values" in refused(tmp_path / name)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "contents", [b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, b"PK\x03\x04" + b"\0" * 64, b"\0" * 9]
)
def test_a_foreign_file_is_refused(contents: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(contents)
    refused(tmp_path / "last.pt")


@pytest.mark.parametrize("contents", [
    {"weights": torch.zeros(2)}, {"format": "mushroom-study checkpoint 0"}, torch.zeros(2), [1], "text",
])  # fmt: skip
def test_a_file_of_another_format_is_refused(contents: object, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save(contents, path)
    message = refused(path)
    assert f"not {FORMAT!r}" in message
    assert message.endswith("remove it")


@pytest.mark.parametrize("field", ["attempt", "job_digest", "history", "model", "averaged", "optimizer"])
@pytest.mark.parametrize("value", ["missing", 1.5])
def test_a_field_that_is_missing_or_of_another_type_is_refused(field: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, checkpoint())
    contents = torch.load(path, weights_only=True)
    if value == "missing":
        del contents[field]
    else:
        contents[field] = value
    torch.save(contents, path)
    assert field in refused(path)


def test_a_record_of_the_history_with_other_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, checkpoint())
    contents = torch.load(path, weights_only=True)
    del contents["history"][0]["top1"]
    torch.save(contents, path)
    assert "history" in refused(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pt"
    assert "No such file or directory" in refused(gone)
    refused(tmp_path)


SAVE_FOR_EVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_checkpoint import checkpoint, save
both = checkpoint(1), checkpoint(2)
print("ready", flush=True)
while True:
    for one in both:
        save(Path({path!r}), one)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_process_killed_while_it_saves_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, checkpoint(1))
    expected = {1: checkpoint(1), 2: checkpoint(2)}
    script = SAVE_FOR_EVER.format(root=str(ROOT), tests=str(ROOT / "tests"), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
    seen = {load(path).attempt for _ in range(50)}  # read while it is being replaced: whole every time
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all(left.name.endswith(UNFINISHED) for left in tmp_path.iterdir() if left != path)
    save(path, load(path))  # not disturbed by what the killed process left
    found = load(path)
    assert_same(expected[found.attempt].model, found.model)
    assert_same(expected[found.attempt].averaged, found.averaged)
    assert_same(expected[found.attempt].optimizer, found.optimizer)
    assert seen == {1, 2}
