"""What people write without this project: the forager's way of training, and the plain Optuna script around it.

    python benchmarks/peers.py --trials 3 --epochs 2        # the plain Optuna script by itself

**The forager's way**: pictures opened and pushed through torchvision's transforms one by one, a DataLoader with two
workers, float tensors in torch's default memory layout, torch's default threads, one process. **The plain Optuna
script**: `study.optimize` around it with a MedianPruner and SQLite. Both have the network, the pictures, the
augmentations and the configurations of this project, so that only the way differs; where people differ among
themselves, the quicker one is taken: pictures are made small before they are augmented.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import optuna
import torch
from measuring import drawn_pictures, points
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms as T  # noqa: N812 (the field's name for it)

from data.augment import MAX_DISTORTION, MAX_ROTATION, MAX_SIGMA, MAX_TRANSLATION, MIN_AREA, MIN_SIGMA, AugmentConfig
from data.catalog import Catalog
from model.network import MushroomCNN
from model.preprocessing import MEAN, STD
from model.training import TrainingConfig, lr_at
from search_space import PROFILES, Config, Profile, suggest

LOADER_WORKERS = 2
LOADER_START = "fork" if sys.platform == "linux" else None
"""Said, because a process that was itself spawned would spawn its loading processes: seconds for each epoch."""


@dataclass(frozen=True)
class Files:
    """Pictures as files with their classes."""

    paths: list[Path]
    labels: list[int]

    @classmethod
    def of(cls, catalog: Catalog, places: Sequence[int]) -> Files:
        """Those at these places of `catalog.kept`."""
        return cls([catalog.file(catalog.kept[place]) for place in places], [int(catalog.labels[p]) for p in places])


class Pictures(Dataset[tuple[Tensor, int]]):
    """Opens a picture and transforms it, each time it is asked for."""

    def __init__(self, files: Files, size: int, augment: AugmentConfig | None = None, views: int = 1) -> None:
        self.files, self.augment, self.views = files, augment, views
        self.small = T.Compose([T.Resize(size), T.CenterCrop(size)])
        self.to_tensor = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])
        s = augment.strength if augment else 0.0
        shift = MAX_TRANSLATION * s
        self.steps = [
            T.RandomRotation(MAX_ROTATION * s),
            T.RandomResizedCrop(size, scale=(1 - s * (1 - MIN_AREA), 1.0)),
            T.RandomHorizontalFlip(p=1.0),
            T.RandomAffine(0, translate=(shift, shift)),
            T.RandomPerspective(MAX_DISTORTION * s, p=1.0),
            T.GaussianBlur(3, sigma=(MIN_SIGMA, MIN_SIGMA + s * (MAX_SIGMA - MIN_SIGMA))),
        ]

    def __len__(self) -> int:
        return len(self.files.paths) * self.views

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index, view = index % len(self.files.paths), index // len(self.files.paths)
        image: Any = self.small(Image.open(self.files.paths[index]).convert("RGB"))
        if self.augment and self.augment.strength and not (self.augment.reuse_originals and (view + index) % 3 == 0):
            for step in random.sample(self.steps, random.randint(1, 2)):
                image = step(image)
        return self.to_tensor(image), self.files.labels[index]


def loaders(train: Files, validation: Files, config: Config) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """A shuffled one, or one that draws rare classes more often, and one in order."""
    pictures = Pictures(train, config.image_size, config.augment, config.views)
    batch = config.training.batch_size
    sampler = None
    if config.training.class_balance == "oversampling":
        weights = 1 / np.bincount(train.labels)[train.labels * config.views]
        sampler = WeightedRandomSampler(weights.tolist(), len(pictures))
    # Not dropped: the last batch trains in this project's epochs too. One picture alone would break batch norm.
    short = len(pictures) % batch == 1
    return (
        DataLoader(
            pictures,
            batch,
            shuffle=sampler is None,
            sampler=sampler,
            num_workers=LOADER_WORKERS,
            drop_last=short,
            multiprocessing_context=LOADER_START,
        ),
        DataLoader(
            Pictures(validation, config.image_size),
            batch,
            num_workers=LOADER_WORKERS,
            multiprocessing_context=LOADER_START,
        ),
    )


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """torch's, as it comes."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


class SeedsWay:
    """Model, optimizer and loaders of one configuration."""

    def __init__(self, config: Config, train: Files, validation: Files) -> None:
        training = config.training
        self.model = MushroomCNN(config.model)
        self.train, self.validation = loaders(train, validation, config)
        weight = None
        if training.class_balance == "weighted loss":
            weight = torch.tensor(len(train.labels) / (config.model.classes * np.bincount(train.labels))).float()
        self.criterion = nn.CrossEntropyLoss(weight=weight, label_smoothing=training.label_smoothing)
        self.optimizer = make_optimizer(self.model, training)
        steps = len(self.train)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_at(min(step, training.epochs * steps - 1), steps, training) / training.lr
        )

    def train_epoch(self) -> int:
        """Returns how many pictures it has shown."""
        self.model.train()
        shown, running_loss = 0, 0.0
        for images, labels in self.train:
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            running_loss += loss.item() * len(labels)
            shown += len(labels)
        return shown

    def evaluate(self) -> float:
        """Accuracy on the validation part."""
        self.model.eval()
        correct = total = 0
        with torch.no_grad():
            for images, labels in self.validation:
                predicted = self.model(images).argmax(dim=1)
                correct += int((predicted == labels).sum())
                total += len(labels)
        return correct / total


def plain_script(
    configurations: Iterable[dict[str, Any]],
    profile: Profile,
    train: Files,
    validation: Files,
    folder: Path,
    *,
    epochs: int | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> Iterator[tuple[int, str, float]]:
    """`study.optimize` over these parameters, each trained for `epochs` of its horizon; the study is in `folder`.

    Yields each trial's number, state and seconds. Without a pruner none is pruned.
    """
    classes = len(set(train.labels))

    def objective(trial: optuna.Trial) -> float:
        config = suggest(trial, profile, classes)
        way = SeedsWay(config, train, validation)
        best = 0.0
        for epoch in range(epochs or config.training.epochs):
            way.train_epoch()
            accuracy = way.evaluate()
            best = max(best, accuracy)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/plain.db", direction="maximize", pruner=pruner or optuna.pruners.NopPruner()
    )
    for number, params in enumerate(configurations):
        begun = time.perf_counter()
        study.enqueue_trial(params)
        study.optimize(objective, n_trials=1)
        yield number, study.trials[number].state.name.lower(), time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int)
    chosen = parser.parse_args()
    profile = PROFILES["quick"]
    profile = replace(profile, epochs=chosen.epochs or profile.epochs)
    catalog, split, _ = drawn_pictures(profile.sizes)
    train, validation = (Files.of(catalog, cast("Sequence[int]", part)) for part in (split.train, split.validation))
    with tempfile.TemporaryDirectory() as folder:
        runs = plain_script(points(profile, chosen.trials), profile, train, validation, Path(folder))
        for number, state, seconds in runs:
            print(f"trial {number}: {state}, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
