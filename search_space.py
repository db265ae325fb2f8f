"""The search space: what a study can choose from, in plain Python. This is the file to edit.

`Config` is one point of the space, `suggest` samples one (one line per knob, with the reason for its bounds),
`baselines` are tried first in every study, and `PROFILES` limit the size of pictures and networks and the length of a
trial. A changed space is another study: start it with `--study NAME`.

The baselines are the two recipes of the mushroom classifier that this project grew out of; README.md tells its story.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from data.augment import AugmentConfig
from model.network import Cost, ModelConfig, cost
from model.plain_json import fill
from model.training import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna


@dataclass(frozen=True, kw_only=True)
class Config:
    """One point of the space: all that a worker needs to build and train a network."""

    image_size: int
    """Side of the square input pictures in pixels."""
    views: int = 1
    """How often each training picture is shown per epoch."""
    model: ModelConfig
    augment: AugmentConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.views < 1:
            raise ValueError(f"`image_size, views >= 1` must hold, but got {self.image_size}, {self.views}")

    def to_dict(self) -> dict[str, Any]:
        """Return the point as plain JSON types, nested like its fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Return the inverse of `to_dict`; missing fields take their defaults. Raises ValueError for anything else."""
        return fill(cls, values)

    @property
    def cost(self) -> Cost:
        """Cost of the network at this image size."""
        return cost(self.model, self.image_size)

    @property
    def digest(self) -> str:
        """Hash of the point without fields that have their default value, so that a new knob changes no older point.

        Knobs that a choice leaves unused do not affect it, because their values are fixed.
        """
        return hashlib.sha256(json.dumps(_without_defaults(self), sort_keys=True).encode()).hexdigest()[:16]


def _without_defaults(value: Any) -> Any:
    if not is_dataclass(value):
        return value
    pairs = [(field, getattr(value, field.name)) for field in fields(value)]
    return {field.name: _without_defaults(content) for field, content in pairs if content != field.default}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a trial may cost: the part of the space that depends on the machine."""

    name: str
    """Name of the profile, a value of `--profile`."""
    image_sizes: tuple[int, int, int]
    """Smallest and largest image size and its step, in pixels; the baselines used 150 and 256."""
    widths: tuple[float, float, float]
    """Smallest and largest network width and its step; width 1 is the baselines' 32 to 256 channels."""
    shown: int
    """Training pictures that a trial is shown if it is not pruned, from which the number of epochs follows."""
    epochs: int | None = None
    """Epochs of such a trial, the horizon of its lr schedule; None until the number of pictures is known."""
    views: int
    """How often each training picture is shown per epoch; the baselines used 3."""
    batch_size: int
    """Pictures per training step."""
    max_flops: float | None
    """Largest number of forward FLOPs per picture of a feasible point, unless `--max-flops` says otherwise."""
    flips: bool = True
    """Whether augmentation may mirror pictures."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """All image sizes in the space, in pixels."""
        low, high, step = self.image_sizes
        return tuple(range(low, high + 1, step))

    @property
    def all_widths(self) -> tuple[float, ...]:
        """All network widths in the space."""
        low, high, step = self.widths
        return tuple(low + step * n for n in range(round((high - low) / step) + 1))

    @property
    def horizon(self) -> int:
        """Epochs of a trial that is not pruned. Raises ValueError before the profile was `fitted`."""
        if self.epochs is None:
            raise ValueError("a profile has no epochs before it was fitted to a data set")
        return self.epochs

    def fitted(self, short_side: int, pictures: int) -> Profile:
        """Return the profile for a data set: pictures' median short side in pixels, and number of training pictures.

        It trains a network for as many epochs as show it `shown` pictures, within LEAST_EPOCHS and MOST_EPOCHS.
        """
        epochs = round(self.shown / max(1, pictures * self.views))
        return replace(self.within(short_side), epochs=self.epochs or min(MOST_EPOCHS, max(LEAST_EPOCHS, epochs)))

    def within(self, short_side: int) -> Profile:
        """Return the profile without image sizes above `short_side` pixels, as enlarging a picture adds nothing.

        If even the smallest one is larger, the only size is `short_side` rounded down to a multiple of 8.
        """
        low, _, step = self.image_sizes
        fitting = [size for size in self.sizes if size <= short_side]
        if not fitting:
            low = max(16, short_side // 8 * 8)
            fitting = [low]
        return replace(self, image_sizes=(low, fitting[-1], step))


LEAST_EPOCHS, MOST_EPOCHS = 8, 300
"""Bounds of a trial's epochs: 50,000 pictures are shown eight times each, 200 pictures 300 times."""

PROFILES = {
    profile.name: profile
    for profile in (
        # 40 trials in at most ten minutes on two CPU cores.
        Profile(
            name="quick",
            image_sizes=(32, 64, 16),
            widths=(0.25, 0.75, 0.125),
            shown=36_000,
            views=1,
            batch_size=32,
            max_flops=100e6,
        ),
        # 40 trials in a few hours on a laptop, the machine of the original project. The budget limits the width, to
        # 0.75 at 96 pixels; small pictures leave room for more.
        Profile(
            name="laptop",
            image_sizes=(64, 128, 32),
            widths=(0.25, 1.5, 0.125),
            shown=100_000,
            views=1,
            batch_size=32,
            max_flops=600e6,
        ),
        # The baselines' full resolution, width and three views of each picture.
        Profile(
            name="gpu",
            image_sizes=(128, 256, 64),
            widths=(0.5, 1.5, 0.25),
            shown=300_000,
            views=3,
            batch_size=32,
            max_flops=None,
        ),
    )
}

ORIGINAL, HAND_TUNED, GUESS = "original recipe", "hand-tuned recipe", "best single guess"
"""Names of the baselines."""
GUESS_FLOPS = 0.6
"""Share of the FLOPs budget within which the best single guess stays."""


def suggest(trial: optuna.Trial, profile: Profile, classes: int) -> Config:
    """Sample one point. Conditional knobs have their own names, so that the sampler learns each in its own range."""

    def choose(name: str, choices: list[str]) -> Any:
        return trial.suggest_categorical(name, choices)

    image_size = trial.suggest_int("image_size", *profile.image_sizes[:2], step=profile.image_sizes[2])
    model = ModelConfig(
        classes=classes,
        # The cost grows with the square of the width; `max_flops` limits it.
        width=trial.suggest_float("width", *profile.widths[:2], step=profile.widths[2]),
        # Where the resolution is halved: late keeps fine detail and costs up to four times as much as early.
        stride_pattern=choose("stride_pattern", ["late", "middle", "early", "every"]),
        # How far a kernel reaches; "consecutive", the original recipe's, samples a grid with gaps.
        dilation_pattern=choose("dilation_pattern", ["none", "consecutive", "alternating", "late", "progressive"]),
        # The average loses small marks, the maximum loses how many of them there are.
        pooling=choose("pooling", ["avg", "max", "avg+max"]),
        # The hand-tuned recipe has 0.2; with 0.5 small networks hardly learn.
        dropout=trial.suggest_float("dropout", 0.0, 0.4, step=0.1),
    )
    # 1 is the baselines' range of the six augmentations; short training often needs less.
    strength = trial.suggest_float("augmentation_strength", 0.0, 1.0, step=0.1)
    # Photographs gain from it, most of all a few; where the colour tells classes apart, less is better.
    colour_jitter = trial.suggest_float("colour_jitter", 0.0, 0.8, step=0.2)
    kind = choose("augmentation", ["fresh", "originals+fresh", "originals+fixed"])
    augmented = strength > 0 or colour_jitter > 0
    augment = AugmentConfig(
        strength=strength,
        # Whether a third of the views are the plain pictures, as in the baselines; without augmentation all are.
        reuse_originals=augmented and kind != "fresh",
        # Fixed: the same augmented copies in every epoch, with which the original recipe overfitted.
        fresh=not augmented or kind != "originals+fixed",
        flips=profile.flips,
        colour_jitter=colour_jitter,
    )
    optimizer = choose("optimizer", ["sgd", "adam", "adamw", "muon"])
    lr = {
        # The hand-tuned recipe's 0.1 diverges on many points without warm-up; 0.01 is slow even for one-cycle.
        "sgd": lambda: trial.suggest_float("sgd_lr", 1e-2, 3e-1, log=True),
        # The original recipe has 0.001.
        "adam": lambda: trial.suggest_float("adam_lr", 5e-4, 1e-2, log=True),
        "adamw": lambda: trial.suggest_float("adamw_lr", 1e-3, 2e-2, log=True),
        # A share of the norm of the weights. With few pictures, hence few steps, larger ones are better.
        "muon": lambda: trial.suggest_float("muon_lr", 5e-3, 1e-1, log=True),
    }[optimizer]()
    weight_decay = {
        "sgd": lambda: trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        "adam": lambda: trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        # Decoupled from the gradient, hence of another magnitude (Loshchilov & Hutter 2019).
        "adamw": lambda: trial.suggest_float("adamw_weight_decay", 1e-2, 5e-1, log=True),
        # The head's alone, which is AdamW's.
        "muon": lambda: 0.05,
    }[optimizer]()
    lr_decay = choose("lr_decay", ["step", "cosine", "one-cycle"])
    step_factor, step_period = 1.0, profile.horizon
    if lr_decay == "step":
        step_factor = trial.suggest_float("step_factor", 0.1, 0.5, step=0.1)
        # From every fifth of the training to once at its middle; in the baselines it is every third.
        step_period = trial.suggest_int("step_period", max(1, profile.horizon // 5), max(1, profile.horizon // 2))
    training = TrainingConfig(
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        schedule=lr_decay,
        step_factor=step_factor,
        step_period=step_period,
        # One-cycle has its own warm-up, 30 % of the training.
        warmup_epochs=0
        if lr_decay == "one-cycle"
        else trial.suggest_int("warmup_epochs", 0, min(2, profile.horizon - 1)),
        epochs=profile.horizon,
        batch_size=profile.batch_size,
        # Softens the targets; above 0.2 the probabilities mean little.
        label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.2, step=0.05),
        # The Kaggle set's largest genus has five times the pictures of its smallest.
        class_balance=choose("class_balance", ["none", "weighted loss", "oversampling"]),
    )
    return Config(image_size=image_size, views=profile.views, model=model, augment=augment, training=training)


def baselines(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return the parameters of the baselines by name, at the profile's size, width and epochs.

    The original project trained without weight decay; on this space's log scale, the smallest value stands for none.
    """
    sizes = profile.sizes
    shared = {
        "width": profile.widths[0],
        "weight_decay": 1e-6,
        "lr_decay": "step",
        "step_factor": 0.1,
        "step_period": max(1, round(profile.horizon / 3)),
        "warmup_epochs": min(1, profile.horizon - 1),
        "label_smoothing": 0.0,
        "class_balance": "none",
        "augmentation_strength": 1.0,
        "colour_jitter": 0.0,
    }
    original = {
        # It used 150 of the hand-tuned recipe's 256 pixels.
        "image_size": min(sizes, key=lambda size: abs(size - sizes[-1] * 150 / 256)),
        "stride_pattern": "early",
        "dilation_pattern": "consecutive",
        "pooling": "avg",
        "dropout": 0.0,
        "augmentation": "originals+fixed",
        "optimizer": "adam",
        "adam_lr": 1e-3,
    }
    hand_tuned = {
        "image_size": sizes[-1],
        "stride_pattern": "late",
        "dilation_pattern": "late",
        "pooling": "avg+max",
        "dropout": 0.2,
        "augmentation": "originals+fresh",
        "optimizer": "sgd",
        "sgd_lr": 0.1,
    }
    return {ORIGINAL: shared | original, HAND_TUNED: shared | hand_tuned, GUESS: guess(profile)}


def guess(profile: Profile) -> dict[str, Any]:
    """Return the parameters of the best single guess: what an experienced person would train without any search.

    It has the largest size, and the largest width with which it stays within GUESS_FLOPS of the budget.
    """
    size, budget = profile.sizes[-1], GUESS_FLOPS * (profile.max_flops or 0.0)

    def flops(width: float) -> int:
        return cost(ModelConfig(classes=2, width=width, stride_pattern="middle"), size).flops

    return {
        "image_size": size,
        "width": max((width for width in profile.all_widths if flops(width) <= budget), default=profile.widths[0]),
        "stride_pattern": "middle",
        "dilation_pattern": "none",
        "pooling": "avg+max",
        "dropout": 0.1,
        "augmentation_strength": 0.3,
        "colour_jitter": 0.4,
        "augmentation": "originals+fresh",
        "optimizer": "adamw",
        "adamw_lr": 4e-3,
        "adamw_weight_decay": 0.05,
        "lr_decay": "one-cycle",
        "label_smoothing": 0.05,
        "class_balance": "none",
    }


def lighter(params: dict[str, Any], profile: Profile) -> Iterator[dict[str, Any]]:
    """Yield the parameters at every width up to their own, widest first, and then again at smaller image sizes."""
    for size in reversed([size for size in profile.sizes if size <= params["image_size"]]):
        for width in reversed([width for width in profile.all_widths if width <= params["width"]]):
            yield params | {"image_size": size, "width": width}


def portfolio(profile: Profile) -> list[dict[str, Any]]:
    """Return the parameters that every study tries after the baselines: variations of the best single guess.

    They take the place of random first trials, most of which are weak: of 24 random points of the quick space the best
    one reached 76.7 % of the field guide's validation pictures after 27 epochs, where the guess reaches 84 to 87.
    """
    middle = profile.widths[0] + profile.widths[2]
    single = guess(profile)
    muon = {name: value for name, value in single.items() if not name.startswith("adamw")} | {"optimizer": "muon"}
    variations = [
        muon | {"muon_lr": 3e-2} | change
        for change in (
            {},
            # Where the colour tells classes apart, jitter costs a point or two; with few photographs it gains two.
            {"colour_jitter": 0.0},
            {"muon_lr": 5e-2, "augmentation_strength": 0.6},
            {"muon_lr": 5e-2, "augmentation_strength": 0.5, "colour_jitter": 0.0},
            {"stride_pattern": "early", "width": middle},
            {
                "muon_lr": 2e-2,
                "augmentation_strength": 0.6,
                "colour_jitter": 0.6,
                "augmentation": "fresh",
                "dropout": 0.2,
            },
            {"width": middle, "image_size": profile.sizes[-2:][0], "label_smoothing": 0.1, "colour_jitter": 0.0},
        )
    ]
    return [*variations, single | {"adamw_lr": 8e-3}]
