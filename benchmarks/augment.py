"""One warp for a batch against a loop over its pictures with torchvision's v2 operations: same steps, same odds.

    python benchmarks/augment.py            # about a minute; one thread, as a worker has

Both sides take normalised float32 pictures and give each one or two of the forager's six augmentations. They run
in turns on the same data, so that a busy machine slows both; the ratio is taken turn by turn.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torchvision.transforms import v2  # pyright: ignore[reportMissingTypeStubs]

from benchmarks.measuring import machine, spread
from data import augment as ours

BATCH = 32
TURNS = 15


def batched(pictures: torch.Tensor, turn: int) -> torch.Tensor:
    """This project's way, the drawing of the parameters included."""
    plain = np.zeros(len(pictures), dtype=np.bool_)
    return ours.augment(pictures, ours.draw(1.0, plain, np.random.default_rng(turn)))


def loop(size: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The usual way: torchvision's own random operations, one picture after the other."""
    bilinear = v2.InterpolationMode.BILINEAR
    shift = (ours.MAX_TRANSLATION, ours.MAX_TRANSLATION)
    steps: list[Callable[[torch.Tensor], torch.Tensor]] = [
        v2.RandomResizedCrop(size, scale=(ours.MIN_AREA, 1.0), ratio=(1 / ours.MAX_RATIO, ours.MAX_RATIO)),
        v2.RandomHorizontalFlip(p=1.0),
        v2.RandomPerspective(distortion_scale=ours.MAX_DISTORTION, p=1.0, interpolation=bilinear),
        v2.RandomRotation([-ours.MAX_ROTATION, ours.MAX_ROTATION], interpolation=bilinear),
        v2.RandomAffine(degrees=[0.0, 0.0], translate=shift, interpolation=bilinear),
        v2.GaussianBlur(3, sigma=(ours.MIN_SIGMA, ours.MAX_SIGMA)),
    ]

    def run(pictures: torch.Tensor, turn: int) -> torch.Tensor:
        torch.manual_seed(turn)  # pyright: ignore[reportUnknownMemberType]
        rng = np.random.default_rng(turn)
        out: list[torch.Tensor] = []
        for row in range(len(pictures)):
            picture = pictures[row]
            for step in rng.choice(len(steps), rng.integers(1, 3), replace=False):
                picture = steps[step](picture)
            out.append(picture)
        return torch.stack(out).contiguous(memory_format=torch.channels_last)

    return run


def milliseconds(run: Callable[[torch.Tensor, int], torch.Tensor], pictures: torch.Tensor, turn: int) -> float:
    """Of one picture."""
    start = time.perf_counter()
    run(pictures, turn)
    return (time.perf_counter() - start) / len(pictures) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    print(f"{machine()}; one thread")
    print(f"ms per picture, batches of {BATCH}; median and quartiles of {TURNS} turns\n")
    print("| size | loop of torchvision v2 | one warp | ratio |")
    print("|---|---|---|---|")
    for size in (64, 128, 256):
        pictures = torch.rand(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
        theirs = loop(size)
        for run in (theirs, batched):
            run(pictures, 0)
        pairs = [
            (milliseconds(theirs, pictures, turn), milliseconds(batched, pictures, turn))
            for turn in range(1, TURNS + 1)
        ]
        slow, fast = ([pair[side] for pair in pairs] for side in (0, 1))
        ratios = [one / other for one, other in pairs]
        print(f"| {size} px | {spread(slow)} | {spread(fast, 3)} | {spread(ratios, 1)} |", flush=True)


if __name__ == "__main__":
    main()
