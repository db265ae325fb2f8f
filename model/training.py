"""Training: a network, two streams of batches and a TrainingConfig in, one EpochMetrics per epoch out.

`fit` is a generator: the caller stops asking when it has seen enough. An epoch depends on the weights, the optimizer's
state and (seed, epoch) alone, so that a run which goes on from a checkpoint needs no random generator's state.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Adam, AdamW, Optimizer

OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["step", "cosine", "one-cycle"]
ClassBalance = Literal["none", "weighted loss", "oversampling"]
Precision = Literal["float32", "bfloat16"]
"""Of training's arithmetic; weights and optimizer are float32 in any case, and so is what evaluates them."""

# ---------------------------------------------------------------------------------------------------------------------
# What goes in and what comes out


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a network is trained; a `ValueError` names the rule that a value breaks."""

    optimizer: OptimizerName
    """sgd has Nesterov momentum; adam adds the decay to the gradient (L2), adamw takes it off the weights."""
    lr: float
    """The schedule's highest learning rate."""
    weight_decay: float = 0.0
    """Of convolutions and the head's matrix; batch norm and biases have none."""
    momentum: float = 0.9
    """sgd's alone."""
    schedule: Schedule
    """step: times `step_factor` each `step_period`; cosine: down to 0; one-cycle: up for 30 % of the run, then down."""
    step_factor: float = 0.1
    """step's alone."""
    step_period: float = 5.0
    """step's alone, in epochs."""
    warmup_epochs: float = 0.0
    """Linear rise at the start of step and cosine; one-cycle brings its own."""
    epochs: int
    """The schedule's horizon; stopping earlier does not bend it."""
    batch_size: int
    """Pictures per step."""
    label_smoothing: float = 0.0
    """The share of each label that is spread over all classes."""
    class_balance: ClassBalance = "none"
    """weighted loss: each class weighs the same in the loss; oversampling: the batches' business, the loss is plain."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("optimizer", self.optimizer, get_args(OptimizerName)),
            ("schedule", self.schedule, get_args(Schedule)),
            ("class_balance", self.class_balance, get_args(ClassBalance)),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, but got {value!r}")
        for rule, holds, value in (
            ("0 < lr < inf", 0 < self.lr < math.inf, self.lr),
            ("0 <= weight_decay < inf", 0 <= self.weight_decay < math.inf, self.weight_decay),
            ("0 < momentum < 1", 0 < self.momentum < 1, self.momentum),  # Nesterov's needs one above 0
            ("0 < step_factor <= 1", 0 < self.step_factor <= 1, self.step_factor),
            ("0 < step_period < inf", 0 < self.step_period < math.inf, self.step_period),
            ("epochs >= 1", self.epochs >= 1, self.epochs),
            ("0 <= warmup_epochs < epochs", 0 <= self.warmup_epochs < self.epochs, self.warmup_epochs),
            ("batch_size >= 2", self.batch_size >= 2, self.batch_size),  # batch norm needs two
            ("0 <= label_smoothing < 1", 0 <= self.label_smoothing < 1, self.label_smoothing),
        ):
            if not holds:
                raise ValueError(f"`{rule}` must hold, but got {value}")


class Batches(Protocol):
    """A stream of batches that can be had again for any epoch."""

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Pictures per class."""
        ...

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures (B, 3, S, S) float32, normalised, and labels (B,) int64, on the network's device."""
        ...


Confusion = tuple[tuple[int, ...], ...]
"""Rows are the truth, columns the prediction."""

LOOK_EVERY = 64
"""Steps whose losses and gradients a GPU keeps until they are read: a wait per step would leave it idle between two."""

MISTAKES = 12
"""How many wrong answers are kept of an evaluation, the most confident ones."""


class Mistake(NamedTuple):
    """A wrong answer."""

    place: int
    """Of the picture among those that were evaluated."""
    predicted: int
    """Class."""
    probability: float
    """That the network gave it."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a network makes of a set of pictures."""

    loss: float
    """Plain cross entropy per picture: no smoothing, no weights, so that all configurations compare."""
    top1: float
    """Share of the pictures whose class has the highest logit, 0 to 1."""
    top3: float
    """Share of the pictures whose class is among the three highest."""
    confusion: Confusion
    """Pictures by truth and prediction."""
    mistakes: tuple[Mistake, ...]
    """The most confident ones, at most MISTAKES, the most confident first."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One epoch's record."""

    epoch: int
    """From 0."""
    train_loss: float
    """Per picture, as it was minimised (smoothed, weighted), over the epoch while the weights moved."""
    train_top1: float
    """0 to 1, of the augmented pictures, while the weights moved."""
    validation_loss: float
    """As in `Evaluation`."""
    top1: float
    """Of the validation pictures, 0 to 1: what a study maximises."""
    top3: float
    """Of the validation pictures, 0 to 1."""
    confusion: Confusion
    """Of the validation pictures."""
    lr: float
    """Of the epoch's last step."""
    seconds: float
    """Training and validation together."""
    peak_memory: int
    """Bytes: on a GPU the most that tensors took since `fit` began, else the most the process ever held."""
    mistakes: tuple[Mistake, ...] = ()
    """Of the validation pictures, as in `Evaluation`."""

    @property
    def per_class(self) -> tuple[float, ...]:
        """Accuracy within each true class, 0 to 1; nan for a class without validation pictures."""
        return tuple(row[label] / sum(row) if sum(row) else math.nan for label, row in enumerate(self.confusion))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        lists = {"confusion": [list(row) for row in self.confusion], "mistakes": [list(row) for row in self.mistakes]}
        return dataclasses.asdict(self) | lists

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "EpochMetrics":
        """The inverse of `to_dict`; a `KeyError` or `TypeError` for a record with other keys."""
        confusion = tuple(tuple(row) for row in record["confusion"])
        mistakes = tuple(Mistake(*row) for row in record["mistakes"])
        values: dict[str, Any] = {**record, "confusion": confusion, "mistakes": mistakes}
        return cls(**values)


class Diverged(ArithmeticError):  # noqa: N818 - an outcome of training, by its name in the field
    """Training left the finite numbers; the weights and the optimizer are as they were before the step."""

    def __init__(self, epoch: int, step: int, lr: float, what: str) -> None:
        super().__init__(epoch, step, lr, what)  # all arguments, so that it can be pickled
        self.epoch = epoch
        self.step = step
        self.lr = lr
        self.what = what

    def __str__(self) -> str:
        return (
            f"loss and gradient must stay finite, but {self.what} at epoch {self.epoch}, step {self.step}, "
            f"lr {self.lr:.3g}; a lower lr or a longer warm-up may help"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Training


def fit(
    model: nn.Module,
    train: Batches,
    validation: Batches,
    config: TrainingConfig,
    *,
    seed: int,
    optimizer: Optimizer | None = None,
    start_epoch: int = 0,
    micro_batch: int | None = None,
    precision: Precision = "float32",
    look_every: int | None = None,
) -> Iterator[EpochMetrics]:
    """Train `model` in place, yielding after each of the epochs `start_epoch` to `config.epochs - 1`.

    To go on from a checkpoint, hand in the model and an optimizer (`make_optimizer`) with their states loaded. A batch
    goes in even parts of at most `micro_batch` pictures whose gradients add up to the whole's (batch norm sees parts).
    Losses and gradients are looked at once in `look_every` steps, by default LOOK_EVERY on a GPU and one elsewhere; the
    numbers do not depend on it. Raises `Diverged` for a step that would not be finite, with weights and optimizer as
    they were before it, and for a validation loss that is not.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
    optimizer = optimizer or make_optimizer(model, config)
    look_every = look_every or (LOOK_EVERY if device.type == "cuda" else 1)
    class_weights = _class_weights(train.class_counts, config).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    for epoch in range(start_epoch, config.epochs):
        started = time.perf_counter()
        _reseed(seed, epoch)
        model.train()
        watch, lr = _Watch(epoch, optimizer, look_every), 0.0
        for step, (images, labels) in enumerate(train.epoch(epoch)):
            lr = lr_at(epoch * len(train) + step, len(train), config)
            for group in optimizer.param_groups:
                group["lr"] = lr

            optimizer.zero_grad()
            batch_loss, batch_hits = torch.zeros((), device=device), torch.zeros((), device=device)
            parts = math.ceil(len(labels) / (micro_batch or len(labels)))
            for part, truth in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
                with autocast(device, precision):
                    logits = model(part)
                    losses = functional.cross_entropy(
                        logits, truth, label_smoothing=config.label_smoothing, reduction="none"
                    )
                loss = (losses * class_weights[truth]).sum() / len(labels)
                loss.backward()  # pyright: ignore[reportUnknownMemberType]
                batch_loss += loss.detach()
                batch_hits += (logits.detach().argmax(dim=1) == truth).sum()

            gradient = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            watch.before_step(batch_loss, batch_hits, gradient, len(labels), lr)
            optimizer.step()

        watch.look()
        result = evaluate(model, validation)
        if not math.isfinite(result.loss):
            raise Diverged(epoch, len(train) - 1, lr, f"got validation loss {result.loss:.3g} after the epoch")
        yield EpochMetrics(
            epoch=epoch,
            train_loss=watch.loss_sum / watch.pictures,
            train_top1=watch.hits / watch.pictures,
            validation_loss=result.loss,
            top1=result.top1,
            top3=result.top3,
            confusion=result.confusion,
            mistakes=result.mistakes,
            lr=lr,
            seconds=time.perf_counter() - started,
            peak_memory=_peak_memory(device),
        )


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Batches) -> Evaluation:
    """Sums over pictures, divided once; leaves the model in evaluation mode.

    In float32, as a winner is used; a GPU's convolutions are TF32, in which `metrics.logits` has them not.
    """
    device = next(model.parameters()).device
    classes, pictures = len(batches.class_counts), sum(batches.class_counts)
    if pictures == 0:
        raise ValueError("evaluation needs at least one picture, but got none")
    model.eval()
    losses: list[Tensor] = []
    predictions: list[Tensor] = []
    surprises: list[Tensor] = []
    hits3 = torch.zeros((), dtype=torch.int64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    for images, labels in batches.epoch(0):
        logits = model(images)
        losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
        # Stable, so that equal logits count for the first class here and in `predicted`
        hits3 += (logits.argsort(dim=1, descending=True, stable=True)[:, :3] == labels[:, None]).sum()
        predicted, probability = logits.argmax(dim=1), logits.softmax(dim=1).amax(dim=1)
        # bincount would have the host wait for a GPU
        confusion.index_add_(0, labels * classes + predicted, torch.ones_like(labels))
        predictions.append(predicted)
        surprises.append(probability.where(predicted != labels, -1.0))
    square = confusion.cpu().reshape(classes, classes)
    return Evaluation(
        loss=math.fsum(_floats(torch.stack(losses))) / pictures,
        top1=int(square.trace()) / pictures,
        top3=int(hits3) / pictures,
        confusion=tuple(tuple(map(int, row)) for row in square.unbind()),
        mistakes=_mistakes(torch.cat(predictions).cpu(), torch.cat(surprises).cpu()),
    )


def lr_at(step: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """The learning rate of a step, counted from 0 over the whole run; a pure function."""
    total = config.epochs * steps_per_epoch
    # 1. one-cycle: Smith & Topin 2018, arXiv:1708.07120, with the values and the cosine shape of torch's OneCycleLR;
    #    momentum stays where it is
    if config.schedule == "one-cycle":
        start, peak, end = config.lr / 25, 0.3 * total - 1, config.lr / 25 / 1e4
        if step <= peak:
            return _cosine(start, config.lr, step / peak)
        return _cosine(config.lr, end, (step - peak) / (total - 1 - peak))
    # 2. linear warm-up: lr itself is reached by the first step after it
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    # 3. cosine: Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts
    if config.schedule == "cosine":
        return _cosine(config.lr, 0.0, (step - warmup) / (total - warmup))
    # 4. step: the period is counted from the run's start, not from the end of the warm-up
    period = max(1, round(config.step_period * steps_per_epoch))
    return config.lr * config.step_factor ** (step // period)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW; batch norm and biases (one-dimensional) are not decayed."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # One pass over all parameters. At width 0.25 on a Zen 4 core a step takes 0.12 ms (sgd) or 0.24 ms (adamw),
    # against 0.26 and 0.74 ms with foreach and 0.42 and 1.07 ms one by one
    fused = parameters[0].device.type in ("cpu", "cuda")
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=fused)
    kind = Adam if config.optimizer == "adam" else AdamW
    return kind(groups, lr=config.lr, fused=fused)


def fastest_precision(device: torch.device) -> Precision:
    """bfloat16 where the hardware multiplies it: GPUs since Ampere, CPUs with AVX512_BF16 or AMX; else float32.

    Elsewhere it is emulated: a step of the mushroom network took 5.8 times as long on a Zen 3 core. On Zen 4 it takes
    half as long at 128 px and two thirds at 48 px.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        there = can.get("avx512_bf16", False) or can.get("amx_bf16", False)
    return "bfloat16" if there else "float32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Convolutions and the head in this precision, losses in float32; a GPU's convolutions in float32 are TF32, as
    torch has them by default."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


class _Watch:
    """An epoch's losses, hits and gradients: they stay on the device until they are looked at, many steps together.

    Meanwhile the first that is not finite holds back its own step and all that follow, on the device, by the flag with
    which `torch.amp.GradScaler` has fused optimizers skip a step. Others take no flag and must be looked at each step.
    """

    def __init__(self, epoch: int, optimizer: Optimizer, look_every: int) -> None:
        self._epoch = epoch
        self._optimizer = optimizer
        self._look_every = look_every if getattr(optimizer, "_step_supports_amp_scaling", False) else 1
        self._steps: list[tuple[Tensor, int, float]] = []
        self._held: Tensor | None = None
        self._looked = 0
        self.loss_sum, self.hits, self.pictures = 0.0, 0.0, 0

    def before_step(self, loss: Tensor, hits: Tensor, gradient: Tensor, pictures: int, lr: float) -> None:
        """Notes a step that is about to be made. Raises `Diverged`, by now for this one or one before it."""
        self._steps.append((torch.stack((loss, hits, gradient)), pictures, lr))
        if len(self._steps) == self._look_every:
            self.look()
        if self._look_every > 1:
            bad = (~(loss.isfinite() & gradient.isfinite())).float()
            self._held = bad if self._held is None else torch.maximum(self._held, bad)
            setattr(self._optimizer, "found_inf", self._held)  # noqa: B010 - no attribute that a type knows of

    def look(self) -> None:
        """Reads what was noted since the last look: the only time that the host waits for the device."""
        rows = torch.stack([row for row, _, _ in self._steps]).tolist() if self._steps else []
        for (mean_loss, hits, norm), (_, pictures, lr) in zip(rows, self._steps, strict=True):
            if not math.isfinite(mean_loss + norm):
                what = f"got loss {mean_loss:.3g} and gradient norm {norm:.3g}"
                raise Diverged(self._epoch, self._looked, lr, what)
            self.loss_sum += mean_loss * pictures
            self.hits += hits
            self.pictures += pictures
            self._looked += 1
        self._steps.clear()


# ---------------------------------------------------------------------------------------------------------------------
# Small parts


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _mistakes(predictions: Tensor, surprises: Tensor) -> tuple[Mistake, ...]:
    """Both (N,): predicted classes, and the probability of each that is wrong, below 0 where it is right."""
    most = surprises.topk(min(MISTAKES, len(surprises)))
    rows = zip(map(int, most.indices), map(int, predictions[most.indices]), _floats(most.values), strict=True)
    return tuple(Mistake(*row) for row in rows if row[2] >= 0)


def _class_weights(counts: tuple[int, ...], config: TrainingConfig) -> Tensor:
    """(classes,): N / (C * n_c), which is 1 on average over the pictures; ones unless the loss is weighted."""
    n = torch.tensor(counts, dtype=torch.float32)
    if config.class_balance != "weighted loss":
        return torch.ones_like(n)
    # A class without pictures never meets its weight
    return n.sum() / (n.count_nonzero() * n.clamp(min=1))


def _reseed(seed: int, epoch: int) -> None:
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> 1))  # pyright: ignore[reportUnknownMemberType]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _floats(vector: Tensor) -> list[float]:
    return cast(list[float], vector.tolist())  # pyright: ignore[reportUnknownMemberType]
