"""How hard is the field guide? Its difficulty is a design, and this measures it.

    python benchmarks/field_guide.py [--cache DIR] [--seeds 3] [--pictures 1500]
    python benchmarks/field_guide.py --contact-sheets DIR

The first draws the set and prints rows for benchmarks/README.md, validation top-1 of the last epoch over seeds:
(a) a linear classifier on 32 px pixels, its weight decay chosen on validation, should stay under 45 %;
(b) a good configuration of the size that the `quick` profile trains should reach 70 to 95 %;
(c) the best of those at a third of the resolution should lose 10 points or more.
The second draws sheets to look at: one per genus at 256 px, and all genera at 64 px.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import cache, catalog, field_guide, sources
from data.augment import AugmentConfig
from data.batches import EvaluationBatches, TrainingBatches
from data.split import split
from model.network import ModelConfig, MushroomCNN
from model.preprocessing import normalise
from model.training import TrainingConfig, fit

SIZE, THIRD, LINEAR = 64, 21, 32
CPU = torch.device("cpu")

MODELS = {
    stride: ModelConfig(
        classes=9, width=0.5, stride_pattern=stride, dilation_pattern="none", pooling="avg+max", dropout=0.1
    )
    for stride in ("early", "middle")
}
TRAINING = TrainingConfig(
    optimizer="adamw", lr=0.004, weight_decay=0.05, schedule="one-cycle", epochs=12, batch_size=32, label_smoothing=0.05
)
"""SGD with Nesterov momentum, lr 0.05 and one-cycle was 11 to 14 points worse on earlier drafts, one run each."""
AUGMENT = AugmentConfig(strength=0.3, reuse_originals=True, fresh=True)


def logistic(x: torch.Tensor, y: torch.Tensor, classes: int, decay: float) -> torch.Tensor:
    """Weights (features + 1, classes) of multinomial logistic regression with L2, bias first, fitted by L-BFGS."""
    weights = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(x @ weights[1:] + weights[0], y) + decay / 2 * weights[1:].square().sum()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss

    optimizer.step(closure)  # pyright: ignore[reportUnknownMemberType, reportArgumentType]
    return weights.detach()


def linear(handle: cache.CacheHandle) -> dict[float, float]:
    """Weight decay -> validation top-1 of a linear classifier on standardised pixels."""
    train, validation = (cache.open_part(handle, LINEAR, part) for part in ("train", "validation"))
    x, held_out = (normalise(torch.as_tensor(part.images[part.indices])).flatten(1) for part in (train, validation))
    mean, std = x.mean(0), x.std(0)
    found: dict[float, float] = {}
    for decay in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        weights = logistic((x - mean) / std, torch.as_tensor(train.labels), train.classes, decay)
        logits = (held_out - mean) / std @ weights[1:] + weights[0]
        found[decay] = float((logits.argmax(1) == torch.as_tensor(validation.labels)).float().mean())
    return found


def train(handle: cache.CacheHandle, size: int, model: ModelConfig, seed: int) -> tuple[float, float]:
    """(validation top-1 of the last epoch, seconds) of one run."""
    begin = time.perf_counter()
    torch.manual_seed(seed)
    network = MushroomCNN(model).to(memory_format=torch.channels_last)
    part = cache.open_part(handle, size, "train")
    batches = TrainingBatches(
        part, batch_size=TRAINING.batch_size, views=1, augment=AUGMENT, oversample=False, seed=seed, device=CPU
    )
    validation = EvaluationBatches(cache.open_part(handle, size, "validation"), device=CPU)
    *_, last = fit(network, batches, validation, TRAINING, seed=seed)
    return last.top1, time.perf_counter() - begin


def row(what: str, runs: list[tuple[float, float]], note: str = "") -> float:
    """Print a row of the table; returns its mean top-1 in percent."""
    scores, seconds = [100 * top1 for top1, _ in runs], np.mean([second for _, second in runs])
    mean = float(np.mean(scores))
    spread = f"{min(scores):.1f} to {max(scores):.1f}"
    print(f"| {what} | {mean:.1f} | {spread} | {len(scores)} | {seconds:.0f} | {note} |", flush=True)
    return mean


def measure(folder: Path, pictures: int, seeds: int) -> None:
    """Draw, cache and train; a row per system."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    source = sources.resolve("field-guide", cache_dir=folder, pictures=pictures)
    drawn = time.perf_counter() - begin
    found = catalog.scan(source, cache_dir=folder)
    parts = split(found)
    handle = cache.build(found, parts, [SIZE, THIRD, LINEAR], cache_dir=folder)
    sizes = f"{len(parts.train)} for training, {len(parts.validation)} for validation"
    print(f"{len(found.kept)} pictures, {sizes}, {drawn:.0f} s to draw;")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread;")
    versions = {"Python": platform.python_version(), **{m.__name__: m.__version__ for m in (torch, np, PIL)}}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    largest = max(np.bincount(cache.open_part(handle, SIZE, "validation").labels)) / len(parts.validation)
    print("| what | top-1 % | range | runs | s a run | note |\n|---|---|---|---|---|---|")
    row("the largest class, always", [(largest, 0)])
    begin = time.perf_counter()
    by_decay = linear(handle)
    decay = max(by_decay, key=lambda d: by_decay[d])
    note = f"weight decay {decay}, the best of {len(by_decay)}"
    row(f"linear, {LINEAR} px", [(by_decay[decay], time.perf_counter() - begin)], note)
    means: dict[str, float] = {}
    for stride, model in MODELS.items():
        means[stride] = row(f"{stride}, {SIZE} px", [train(handle, SIZE, model, seed) for seed in range(seeds)])
    best = max(means, key=lambda stride: means[stride])
    runs = [train(handle, THIRD, MODELS[best], seed) for seed in range(seeds)]
    row(
        f"{best}, {THIRD} px",
        runs,
        f"loses {means[best] - 100 * float(np.mean([top1 for top1, _ in runs])):.1f} points",
    )


def contact_sheets(folder: Path) -> None:
    """Write `<Genus>.png` (6 x 4 pictures of 256 px) and `overview.png` (9 rows of 16 of 64 px)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[np.ndarray] = []
    for genus in field_guide.GENERA:
        large = [np.asarray(field_guide.draw(genus, index)) for index in range(24)]
        sheet = np.concatenate([np.concatenate(large[start : start + 6], 1) for start in range(0, 24, 6)])
        Image.fromarray(sheet).save(folder / f"{genus}.png")
        rows.append(np.concatenate([np.asarray(field_guide.draw(genus, index, size=64)) for index in range(16)], 1))
    Image.fromarray(np.concatenate(rows)).save(folder / "overview.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="How hard is the field guide?")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/field-guide-benchmark"), help="where to draw the set")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--contact-sheets", type=Path, metavar="DIR", help="write sheets to look at instead")
    chosen = parser.parse_args()
    if chosen.contact_sheets:
        contact_sheets(chosen.contact_sheets)
    else:
        measure(chosen.cache, chosen.pictures, chosen.seeds)


if __name__ == "__main__":
    main()
