"""How hard is the field guide? Its difficulty was designed; this measures it.

    python benchmarks/field_guide.py [--seeds 3] [--pictures 1500]
    python benchmarks/field_guide.py --contact-sheets DIR

The first command draws the pictures and prints rows for benchmarks/README.md, validation top-1 of the last epoch:
(a) a linear classifier on 32 px pixels, its weight decay chosen on validation, should stay below 45 %;
(b) a good configuration as small as the `quick` profile's should reach 70 to 95 %;
(c) the better of two such configurations should lose 10 points or more at a third of the resolution.
The second writes contact sheets: one per genus at 256 px, and one of all genera at 64 px.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.measuring import CPU, training_batches
from data import cache, field_guide
from data.augment import AugmentConfig
from data.batches import EvaluationBatches
from data.prepare import default_cache, find_pictures
from model.network import ModelConfig, MushroomCNN
from model.preprocessing import normalise
from model.training import TrainingConfig, fit
from search_space import Config
from tests.stress.script import header, machine, row, run

SIZE, THIRD, LINEAR = 64, 21, 32
DECAYS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def config(stride: str, size: int) -> Config:
    """Return a good configuration; SGD with lr 0.05 was 11 to 14 points worse on earlier drafts, one run each."""
    return Config(
        image_size=size,
        views=1,
        model=ModelConfig(
            classes=9, width=0.5, stride_pattern=stride, dilation_pattern="none", pooling="avg+max", dropout=0.1
        ),
        augment=AugmentConfig(strength=0.3, reuse_originals=True, fresh=True),
        training=TrainingConfig(
            optimizer="adamw",
            lr=0.004,
            weight_decay=0.05,
            schedule="one-cycle",
            epochs=12,
            batch_size=32,
            label_smoothing=0.05,
        ),
    )


def logistic(x: torch.Tensor, y: torch.Tensor, classes: int, decay: float) -> torch.Tensor:
    """Return the weights (features + 1, classes), bias first, of L2-regularised logistic regression by L-BFGS."""
    weights = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(x @ weights[1:] + weights[0], y) + decay / 2 * weights[1:].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weights.detach()


def linear(handle: cache.CacheHandle) -> dict[float, float]:
    """Return validation top-1 of a linear classifier on standardised pixels, by weight decay."""
    train, validation = (cache.open_part(handle, LINEAR, part) for part in ("train", "validation"))
    x, held_out = (normalise(torch.as_tensor(part.images[part.indices])).flatten(1) for part in (train, validation))
    mean, std = x.mean(0), x.std(0)
    found: dict[float, float] = {}
    for decay in DECAYS:
        weights = logistic((x - mean) / std, torch.as_tensor(train.labels), train.classes, decay)
        logits = (held_out - mean) / std @ weights[1:] + weights[0]
        found[decay] = float((logits.argmax(1) == torch.as_tensor(validation.labels)).float().mean())
    return found


def print_runs(handle: cache.CacheHandle, stride: str, size: int, seeds: int, above: float | None = None) -> float:
    """Train with each seed and print the row; return the mean top-1 in percent. `above` is the mean to compare with."""
    chosen, scores, began = config(stride, size), list[float](), time.perf_counter()
    for seed in range(seeds):
        torch.manual_seed(seed)
        batches = training_batches(chosen, cache.open_part(handle, size, "train"))
        validation = EvaluationBatches(cache.open_part(handle, size, "validation"), device=CPU)
        *_, last = fit(MushroomCNN(chosen.model), batches, validation, chosen.training, seed=seed)
        scores.append(100 * last.top1)
    mean, seconds = float(np.mean(scores)), (time.perf_counter() - began) / seeds
    extremes, note = f"{min(scores):.1f} to {max(scores):.1f}", f"loses {above - mean:.1f} points" if above else ""
    row(f"CNN, {stride} strides, {size} px", f"{mean:.1f}", extremes, seeds, f"{seconds:.0f}", note)
    return mean


def measure(pictures: int, seeds: int) -> None:
    """Draw, decode and train; print a row per system."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = find_pictures(limit=pictures)
    drawn = time.perf_counter() - began
    handle = found.decode([SIZE, THIRD, LINEAR], cache_dir=default_cache())
    sizes = f"{len(found.split.train)} for training, {len(found.split.validation)} for validation"
    print(f"{len(found.catalog.kept)} pictures, {sizes}, {drawn:.0f} s to draw or find them")
    print(f"{machine()}; one thread\n")
    header("what", "top-1 %", "range", "runs", "s per run", "note")
    largest = max(np.bincount(cache.open_part(handle, SIZE, "validation").labels)) / len(found.split.validation)
    row("always the largest class", f"{100 * largest:.1f}", "-", 1, "-", "")
    began = time.perf_counter()
    by_decay = linear(handle)
    decay = max(by_decay, key=lambda one: by_decay[one])
    note = f"weight decay {decay}, the best of {len(by_decay)}"
    row(f"linear, {LINEAR} px", f"{100 * by_decay[decay]:.1f}", "-", 1, f"{time.perf_counter() - began:.0f}", note)
    means = {stride: print_runs(handle, stride, SIZE, seeds) for stride in ("early", "middle")}
    best = max(means, key=lambda stride: means[stride])
    print_runs(handle, best, THIRD, seeds, above=means[best])


def write_contact_sheets(folder: Path) -> None:
    """Write `<Genus>.png` (6 x 4 pictures of 256 px) and `overview.png` (9 rows of 16 pictures of 64 px)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[np.ndarray] = []
    for genus in field_guide.GENERA:
        large = [np.asarray(field_guide.draw(genus, index)) for index in range(24)]
        sheet = np.concatenate([np.concatenate(large[start : start + 6], 1) for start in range(0, 24, 6)])
        Image.fromarray(sheet).save(folder / f"{genus}.png")
        rows.append(np.concatenate([np.asarray(field_guide.draw(genus, index, size=64)) for index in range(16)], 1))
    Image.fromarray(np.concatenate(rows)).save(folder / "overview.png")


def main(*, pictures: int = field_guide.DEFAULT_TOTAL, seeds: int = 3, contact_sheets: Path | None = None) -> None:
    """Print the table.

    Parameters
    ----------
    contact_sheets
        Write contact sheets into this folder instead.
    """
    if contact_sheets:
        write_contact_sheets(contact_sheets)
    else:
        measure(pictures, seeds)


if __name__ == "__main__":
    run(main)
