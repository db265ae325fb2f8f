"""What this program is compared with: the original project's training method, and a plain Optuna script around it.

**The original project's method**: pictures are opened and pushed through torchvision's transforms one by one, by a
DataLoader with two workers; float tensors have torch's default memory layout; one process has torch's default number of
threads. **The plain script** calls `study.optimize` around it, with a MedianPruner and SQLite. Both use the network,
the pictures, the augmentations and the configurations of this project, so that only the method differs. Where people's
scripts differ, the faster variant is used: pictures are downscaled before they are augmented.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms as T  # noqa: N812 (its usual name)

from data.augment import MAX_DISTORTION, MAX_ROTATION, MAX_SIGMA, MAX_TRANSLATION, MIN_AREA, MIN_SIGMA, AugmentConfig
from data.catalog import Catalog
from model.network import MushroomCNN
from model.preprocessing import MEAN, STD
from model.training import TrainingConfig, lr_at, make_optimizer
from search_space import Config, Profile, suggest

LOADER_WORKERS = 2
LOADER_START = "fork" if sys.platform == "linux" else None
"""Start method of the DataLoader's workers; in a spawned process the default would be to spawn them, which takes
seconds per epoch."""


@dataclass(frozen=True)
class Files:
    """Picture files with their classes."""

    paths: list[Path]
    labels: list[int]

    @classmethod
    def of(cls, catalog: Catalog, positions: Sequence[int]) -> Files:
        """Return the files at these positions of `catalog.kept`."""
        paths = [catalog.file(catalog.kept[position]) for position in positions]
        return cls(paths, [int(catalog.labels[position]) for position in positions])


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures that are opened and transformed each time they are requested."""

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
    """Return the training loader, which shuffles or oversamples rare classes, and the validation loader."""
    pictures = Pictures(train, config.image_size, config.augment, config.views)
    batch = config.training.batch_size
    sampler = None
    if config.training.class_balance == "oversampling":
        weights = 1 / np.bincount(train.labels)[train.labels * config.views]
        sampler = WeightedRandomSampler(weights.tolist(), len(pictures))
    common: dict[str, Any] = {"num_workers": LOADER_WORKERS, "multiprocessing_context": LOADER_START}
    # A short last batch is kept, as in this project's epochs, except one picture alone, which breaks batch norm.
    dropped = len(pictures) % batch == 1
    return (
        DataLoader(pictures, batch, shuffle=sampler is None, sampler=sampler, drop_last=dropped, **common),
        DataLoader(Pictures(validation, config.image_size), batch, **common),
    )


def plain_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return torch's optimizer with its defaults; torch has no Muon for convolutions."""
    if config.optimizer == "muon":
        return make_optimizer(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


class OriginalTraining:
    """The original project's training method: model, optimizer and loaders of one configuration."""

    def __init__(self, config: Config, train: Files, validation: Files) -> None:
        training = config.training
        self.model = MushroomCNN(config.model)
        self.train, self.validation = loaders(train, validation, config)
        weight = None
        if training.class_balance == "weighted loss":
            weight = torch.tensor(len(train.labels) / (config.model.classes * np.bincount(train.labels))).float()
        self.criterion = nn.CrossEntropyLoss(weight=weight, label_smoothing=training.label_smoothing)
        self.optimizer = plain_optimizer(self.model, training)
        steps = len(self.train)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_at(min(step, training.epochs * steps - 1), steps, training) / training.lr
        )

    def train_epoch(self) -> int:
        """Train for one epoch; return the number of pictures shown."""
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
        """Return the accuracy on the validation set, 0 to 1."""
        self.model.eval()
        correct = total = 0
        with torch.no_grad():
            for images, labels in self.validation:
                predicted = self.model(images).argmax(dim=1)
                correct += int((predicted == labels).sum())
                total += len(labels)
        return correct / total


class PlainScript:
    """A study run by `study.optimize` over given configurations, in an SQLite file in `folder`."""

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        train: Files,
        validation: Files,
        *,
        pruner: optuna.pruners.BasePruner,
        epochs: int | None = None,
    ) -> None:
        """Create the study; `epochs` is how many of a trial's epochs are trained, all by default."""
        self._profile, self._train, self._validation, self._epochs = profile, train, validation, epochs
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(storage=f"sqlite:///{folder}/plain.db", direction="maximize", pruner=pruner)

    def train(self, parameters: dict[str, Any]) -> tuple[str, float]:
        """Train one configuration; return the trial's state and seconds."""
        began = time.perf_counter()
        self._study.enqueue_trial(parameters)
        self._study.optimize(self._objective, n_trials=1)
        return self._study.trials[-1].state.name.lower(), time.perf_counter() - began

    def _objective(self, trial: optuna.Trial) -> float:
        config = suggest(trial, self._profile, len(set(self._train.labels)))
        training = OriginalTraining(config, self._train, self._validation)
        best = 0.0
        for epoch in range(self._epochs or config.training.epochs):
            training.train_epoch()
            accuracy = training.evaluate()
            best = max(best, accuracy)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best
