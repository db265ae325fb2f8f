"""Latency of a bundle's formats side by side: the eager network, torch.export's graph, and ONNX Runtime.

    python benchmarks/formats.py results/field-guide/best       # a bundle; about a minute
    python benchmarks/formats.py --image-size 64 --width 0.5    # random weights of a given size, exported first

All three take the same uint8 squares and give calibrated probabilities. They run in turns, so that a busy machine slows
all of them; the ratio is taken turn by turn.
"""

import argparse
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

from benchmarks.measuring import machine, spread
from model.export.bundle import WEIGHTS, Bundle, load
from model.export.formats import ONNX, TORCH, Deployed, publish
from model.network import ModelConfig, MushroomCNN, cost

BATCHES = (1, 32)
TURNS = 25
PICTURES_A_TURN = 32
"""Each turn sees so many, in batches: one batch of one is too short a time to measure."""

Run = Callable[[npt.NDArray[np.uint8]], object]


def readers(folder: Path, threads: int) -> dict[str, Run]:
    """Each format as a function of uint8 (n, S, S, 3)."""
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


def milliseconds(run: Run, pictures: npt.NDArray[np.uint8], batch: int) -> float:
    """Of one picture."""
    start = time.perf_counter()
    for first in range(0, len(pictures), batch):
        run(pictures[first : first + batch])
    return (time.perf_counter() - start) / len(pictures) * 1e3


def compare(folder: Path) -> None:
    bundle, _ = load(folder)
    weight = cost(bundle.model, bundle.image_size)
    sizes = ", ".join(f"{name} {(folder / name).stat().st_size:,} bytes" for name in (WEIGHTS, TORCH, ONNX))
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}")
    print(f"{bundle.image_size} px, {weight.parameters:,} parameters, {weight.flops / 1e6:,.1f} MFLOP a picture")
    print(sizes)
    print(f"ms a picture; median and quartiles of {TURNS} interleaved turns of {PICTURES_A_TURN} pictures\n")
    print("| threads | batch | eager | torch.export | ONNX Runtime | eager / ONNX Runtime |")
    print("|---|---|---|---|---|---|")
    side = bundle.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES_A_TURN, side, side, 3), dtype=np.uint8)
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        runs = readers(folder, threads)
        for batch in BATCHES:
            for run in runs.values():
                milliseconds(run, pictures, batch)
            turns = [[milliseconds(run, pictures, batch) for run in runs.values()] for _ in range(TURNS)]
            columns = [spread(list(column), 3) for column in zip(*turns, strict=True)]
            ratio = spread([eager / other for eager, _, other in turns], 2)
            print(f"| {threads} | {batch} | {' | '.join(columns)} | {ratio} |", flush=True)


def made(folder: Path, image_size: int, width: float) -> Path:
    """A bundle of random weights; how fast a network is does not depend on what it has learnt."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of a bundle's formats, side by side.")
    parser.add_argument("folder", nargs="?", type=Path, help="a bundle; without one, one of random weights is made")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        compare(arguments.folder or made(Path(scratch), arguments.image_size, arguments.width))


if __name__ == "__main__":
    main()
