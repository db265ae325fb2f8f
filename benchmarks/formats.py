"""Latency of a bundle's formats: the eager network, the torch.export graph, and ONNX Runtime.

    python benchmarks/formats.py results/field-guide/best       # a bundle; about a minute
    python benchmarks/formats.py --image-size 64 --width 0.5    # random weights, exported first

All three read the same uint8 squares and return calibrated probabilities. They take turns, so that a busy machine slows
all of them; the ratio is taken within a turn.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
import torch

from benchmarks.measuring import spread
from model.export.bundle import WEIGHTS, Bundle, load
from model.export.formats import ONNX, TORCH, Deployed, publish
from model.network import ModelConfig, MushroomCNN, cost
from tests.stress.script import header, machine, row, run

BATCHES = (1, 32)
TURNS = 25
PICTURES_PER_TURN = 32
"""Number of pictures that each turn reads, in batches: a single batch of one is too short to be timed."""

Run = Callable[[npt.NDArray[np.uint8]], object]


def readers(folder: Path, threads: int) -> dict[str, Run]:
    """Return each format as a function of uint8 pictures, (n, S, S, 3)."""
    bundle, network = load(folder)
    deployed = Deployed(network, bundle.temperature)
    graph = torch.export.load(folder / TORCH).module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / ONNX, options, providers=["CPUExecutionProvider"])
    return {
        "eager": lambda pictures: deployed(torch.from_numpy(pictures)),
        "torch.export": lambda pictures: graph(torch.from_numpy(pictures)),
        "ONNX Runtime": lambda pictures: session.run(None, {"pictures": pictures}),
    }


def milliseconds(read: Run, pictures: npt.NDArray[np.uint8], batch: int) -> float:
    """Return the milliseconds per picture."""
    start = time.perf_counter()
    for first in range(0, len(pictures), batch):
        read(pictures[first : first + batch])
    return (time.perf_counter() - start) / len(pictures) * 1e3


def compare(folder: Path) -> None:
    """Print the table of a bundle."""
    bundle, _ = load(folder)
    weight, side = cost(bundle.model, bundle.image_size), bundle.image_size
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}")
    print(f"{side} px, {weight.parameters:,} parameters, {weight.flops / 1e6:,.1f} MFLOP per picture")
    print(", ".join(f"{name} {(folder / name).stat().st_size:,} bytes" for name in (WEIGHTS, TORCH, ONNX)))
    print(f"ms per picture; median and quartiles of {TURNS} interleaved turns of {PICTURES_PER_TURN} pictures\n")
    header("threads", "batch", "eager", "torch.export", "ONNX Runtime", "eager / ONNX Runtime")
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES_PER_TURN, side, side, 3), dtype=np.uint8)
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        formats = readers(folder, threads)
        for batch in BATCHES:
            for read in formats.values():
                milliseconds(read, pictures, batch)
            turns = [[milliseconds(read, pictures, batch) for read in formats.values()] for _ in range(TURNS)]
            columns = [spread(list(column), 3) for column in zip(*turns, strict=True)]
            row(threads, batch, *columns, spread([eager / onnx for eager, _, onnx in turns]))


def random_bundle(folder: Path, image_size: int, width: float) -> Path:
    """Export random weights; a network's speed does not depend on what it has learned."""
    torch.manual_seed(0)
    model = ModelConfig(classes=9, width=width)
    bundle = Bundle(
        model=model,
        classes=tuple(f"class {label}" for label in range(9)),
        image_size=image_size,
        temperature=1.0,
        provenance={},
        results=None,
    )
    check = np.random.default_rng(0).integers(0, 256, (8, image_size, image_size, 3), dtype=np.uint8)
    return publish(folder / "best", bundle, MushroomCNN(model).state_dict(), check).folder


def main(folder: Path | None = None, *, image_size: int = 64, width: float = 0.5) -> None:
    """Print the table.

    Parameters
    ----------
    folder
        A bundle's folder; by default, a bundle with random weights is exported.
    image_size
        Image size for random weights, in pixels.
    width
        Network width for random weights.
    """
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        compare(folder or random_bundle(Path(scratch), image_size, width))


if __name__ == "__main__":
    run(main)
