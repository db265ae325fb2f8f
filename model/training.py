"""Training: takes a network, two streams of batches and a TrainingConfig, and yields one EpochMetrics per epoch.

`fit` is a generator: to stop early, the caller stops iterating. An epoch depends only on the weights, the
optimizer's state and (seed, epoch), so a run that resumes from a checkpoint needs no random generator state.
"""

import copy
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

from model.muon import Muon
from model.network import check_choice

OptimizerName = Literal["sgd", "adam", "adamw", "muon"]
Schedule = Literal["step", "cosine", "one-cycle"]
ClassBalance = Literal["none", "weighted loss", "oversampling"]
Precision = Literal["float32", "bfloat16"]
"""Precision of the training step's arithmetic; weights, optimizer and evaluation are always float32."""

# ---------------------------------------------------------------------------------------------------------------------
# What goes in and what comes out


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a network is trained; raises ValueError with the rule that a value breaks."""

    optimizer: OptimizerName
    """Optimizer: sgd has Nesterov momentum, adam adds the decay to the gradient (L2), adamw decays the weights, muon
    turns each convolution by an orthogonal step and leaves the rest to adamw (`model/muon.py`)."""
    lr: float
    """Highest learning rate of the schedule; with muon, a step's size as a share of the norm of the weights."""
    weight_decay: float = 0.0
    """Weight decay of the convolutions and the head's weights, with muon of the head's; batch norm and biases have
    none."""
    momentum: float = 0.9
    """Momentum of sgd and muon; other optimizers ignore it."""
    schedule: Schedule
    """Learning rate schedule: step multiplies it by `step_factor` every `step_period` epochs, cosine lowers it to 0,
    one-cycle raises it for 30 % of the run and then lowers it."""
    step_factor: float = 0.1
    """Factor of the step schedule; other schedules ignore it."""
    step_period: float = 5.0
    """Period of the step schedule in epochs; other schedules ignore it."""
    warmup_epochs: float = 0.0
    """Length in epochs of the linear warm-up of step and cosine; one-cycle has its own."""
    epochs: int
    """Length of the schedule in epochs; stopping earlier does not change its shape."""
    batch_size: int
    """Pictures per step."""
    label_smoothing: float = 0.0
    """Label smoothing: share of each label that is spread over all classes."""
    class_balance: ClassBalance = "none"
    """Class balance: weighted loss gives all classes the same weight; oversampling is up to the batches."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_choice("class_balance", self.class_balance, get_args(ClassBalance))
        for rule, holds, value in (
            ("0 < lr < inf", 0 < self.lr < math.inf, self.lr),
            ("0 <= weight_decay < inf", 0 <= self.weight_decay < math.inf, self.weight_decay),
            ("0 < momentum < 1", 0 < self.momentum < 1, self.momentum),  # Nesterov momentum must be above 0
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
    """A stream of batches that can be generated again for any epoch."""

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Number of pictures per class."""
        ...

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        ...

    def epoch(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pictures (B, 3, S, S), normalised float32, and labels (B,), int64, on the network's device."""
        ...


Confusion = tuple[tuple[int, ...], ...]
"""Number of pictures by true class (rows) and predicted class (columns)."""

FLUSH_EVERY = 64
"""Number of steps between two reads of losses and gradients on a GPU: waiting after every step would leave it idle."""

AVERAGING = 8.0
"""Decay of the average of the weights, gamma of Shamir & Zhang 2013: it spans 1 / (AVERAGING + 1) of the steps."""

MISTAKES = 12
"""Number of wrong predictions that an evaluation keeps: the most confident ones."""


class Mistake(NamedTuple):
    """A wrong prediction."""

    place: int
    """Position of the picture among those evaluated."""
    predicted: int
    """Predicted class."""
    probability: float
    """Probability of the predicted class."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of evaluating a network on a set of pictures."""

    loss: float
    """Plain cross entropy per picture: no smoothing, no weights, so that all configurations are comparable."""
    top1: float
    """Share of the pictures whose true class has the highest logit, 0 to 1."""
    top3: float | None
    """Share of the pictures whose true class has one of the three highest logits, 0 to 1; None for up to three classes,
    of which it would always be 1."""
    confusion: Confusion
    mistakes: tuple[Mistake, ...]
    """The most confident wrong predictions, up to MISTAKES, the most confident first."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Metrics of one epoch of training."""

    epoch: int
    """Number of the epoch, from 0."""
    train_loss: float
    """Training loss per picture (smoothed, weighted), averaged over the epoch while the weights changed."""
    train_top1: float
    """Top-1 on the augmented training pictures, 0 to 1, averaged over the epoch while the weights changed."""
    validation_loss: float
    """Plain cross entropy per validation picture, as in `Evaluation`."""
    top1: float
    """Top-1 on the validation pictures, 0 to 1: the value that a study maximises."""
    top3: float | None
    """Top-3 on the validation pictures, 0 to 1; None for up to three classes."""
    confusion: Confusion
    """Number of validation pictures by true class (rows) and predicted class (columns)."""
    lr: float
    """Learning rate of the epoch's last step."""
    seconds: float
    """Duration of the epoch, training and validation together."""
    peak_memory: int
    """Peak memory in bytes: that of a GPU's tensors since `fit` began, or that of the process since its start."""
    mistakes: tuple[Mistake, ...] = ()
    """The most confident wrong predictions on the validation pictures, as in `Evaluation`."""

    @property
    def per_class(self) -> tuple[float, ...]:
        """Accuracy within each true class, 0 to 1; nan for a class without validation pictures."""
        return tuple(row[label] / sum(row) if sum(row) else math.nan for label, row in enumerate(self.confusion))

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as plain JSON types."""
        lists = {"confusion": [list(row) for row in self.confusion], "mistakes": [list(row) for row in self.mistakes]}
        return dataclasses.asdict(self) | lists

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "EpochMetrics":
        """Return the metrics that `to_dict` wrote. Raises KeyError or TypeError for a record with other keys."""
        confusion = tuple(tuple(row) for row in record["confusion"])
        mistakes = tuple(Mistake(*row) for row in record["mistakes"])
        values: dict[str, Any] = {**record, "confusion": confusion, "mistakes": mistakes}
        return cls(**values)


@dataclass(eq=False)
class Diverged(ArithmeticError):  # noqa: N818 - an outcome of training, by its name in the field
    """A loss or gradient is not finite; weights and optimizer are as they were before the step."""

    epoch: int
    step: int
    lr: float
    what: str

    def __str__(self) -> str:
        where = f"epoch {self.epoch}, step {self.step}, lr {self.lr:.3g}"
        return f"{self.what} at {where}: a lower lr or a longer warm-up may help"


# ---------------------------------------------------------------------------------------------------------------------
# Training


def fit(
    model: nn.Module,
    train: Batches,
    validation: Batches,
    config: TrainingConfig,
    *,
    seed: int,
    averaged: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    start_epoch: int = 0,
    micro_batch: int | None = None,
    precision: Precision = "float32",
    flush_every: int | None = None,
) -> Iterator[EpochMetrics]:
    """Train `model` in place and yield the metrics of each epoch from `start_epoch` to `config.epochs - 1`.

    The metrics are those of `averaged`, a copy of the model that becomes the running average of its weights (see
    `average_into`). To resume from a checkpoint, pass the model, the average and an optimizer from `make_optimizer`
    with their states loaded. A batch is split into even micro-batches of up to `micro_batch` pictures whose gradients
    are accumulated (batch norm sees the micro-batches). Losses and gradients are read every `flush_every` steps, by
    default FLUSH_EVERY on a GPU and 1 elsewhere; the results do not depend on it. Raises `Diverged` for a step that
    would not be finite, with weights and optimizer as they were before it, and for a validation loss that is not
    finite.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(model) if averaged is None else averaged.to(memory_format=torch.channels_last)
    optimizer = optimizer or make_optimizer(model, config)
    flush_every = flush_every or (FLUSH_EVERY if device.type == "cuda" else 1)
    class_weights = _class_weights(train.class_counts, config).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    for epoch in range(start_epoch, config.epochs):
        started = time.perf_counter()
        _reseed(seed, epoch)
        model.train()
        sums, lr = _EpochSums(epoch, optimizer, flush_every), 0.0
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
            sums.before_step(batch_loss, batch_hits, gradient, len(labels), lr)
            optimizer.step()
            average_into(averaged, model, epoch * len(train) + step)

        sums.flush()
        result = evaluate(averaged, validation)
        if not math.isfinite(result.loss):
            raise Diverged(epoch, len(train) - 1, lr, f"validation loss {result.loss:.3g} after the epoch")
        yield EpochMetrics(
            epoch=epoch,
            train_loss=sums.loss / sums.pictures,
            train_top1=sums.hits / sums.pictures,
            validation_loss=result.loss,
            top1=result.top1,
            top3=result.top3,
            confusion=result.confusion,
            mistakes=result.mistakes,
            lr=lr,
            seconds=time.perf_counter() - started,
            peak_memory=_peak_memory(device),
        )


@torch.no_grad()
def average_into(averaged: nn.Module, model: nn.Module, step: int) -> None:
    """Update the running average of a network's weights and batch norm statistics after a step, counted from 0.

    Polynomial-decay averaging (Shamir & Zhang 2013, arXiv:1212.1824): the average is over about the last ninth of all
    steps so far, whatever their number. It shows early what the weights are worth once the learning rate has fallen.
    """
    average, current = averaged.state_dict().values(), model.state_dict().values()
    pairs = list(zip(average, current, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    share = (AVERAGING + 1) / (step + 1 + AVERAGING)
    torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], share)  # pyright: ignore
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Batches) -> Evaluation:
    """Return loss, accuracy and mistakes over all pictures, in float32; the model is left in evaluation mode.

    On a GPU convolutions use TF32 here; `metrics.logits` has full precision. Raises ValueError if there is no picture.
    """
    device = next(model.parameters()).device
    classes, pictures = len(batches.class_counts), sum(batches.class_counts)
    if pictures == 0:
        raise ValueError("there are no pictures to evaluate on")
    model.eval()
    losses: list[Tensor] = []
    predictions: list[Tensor] = []
    wrong: list[Tensor] = []
    hits3 = torch.zeros((), dtype=torch.int64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    for images, labels in batches.epoch(0):
        logits = model(images)
        losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
        # Stable, so that of equal logits the first class counts, here as in `predicted`
        hits3 += (logits.argsort(dim=1, descending=True, stable=True)[:, :3] == labels[:, None]).sum()
        predicted, probability = logits.argmax(dim=1), logits.softmax(dim=1).amax(dim=1)
        # bincount would make the host wait for a GPU
        confusion.index_add_(0, labels * classes + predicted, torch.ones_like(labels))
        predictions.append(predicted)
        wrong.append(probability.where(predicted != labels, -1.0))
    square = confusion.cpu().reshape(classes, classes)
    return Evaluation(
        loss=math.fsum(_floats(torch.stack(losses))) / pictures,
        top1=int(square.trace()) / pictures,
        top3=int(hits3) / pictures if classes > 3 else None,
        confusion=tuple(tuple(map(int, row)) for row in square.unbind()),
        mistakes=_mistakes(torch.cat(predictions).cpu(), torch.cat(wrong).cpu()),
    )


def lr_at(step: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step, counted from 0 over the whole run; a pure function."""
    total = config.epochs * steps_per_epoch
    # 1. one-cycle: Smith & Topin 2018, arXiv:1708.07120, with the values and the cosine shape of torch's OneCycleLR,
    #    but constant momentum
    if config.schedule == "one-cycle":
        start, peak, end = config.lr / 25, 0.3 * total - 1, config.lr / 25 / 1e4
        if step <= peak:
            return _cosine(start, config.lr, step / peak)
        return _cosine(config.lr, end, (step - peak) / (total - 1 - peak))
    # 2. linear warm-up: the first step after it has lr itself
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    # 3. cosine: Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts
    if config.schedule == "cosine":
        return _cosine(config.lr, 0.0, (step - warmup) / (total - warmup))
    # 4. step: the period is counted from the start of the run, not from the end of the warm-up
    period = max(1, round(config.step_period * steps_per_epoch))
    return config.lr * config.step_factor ** (step // period)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """Return SGD with Nesterov momentum, Adam, AdamW or Muon; batch norm and biases (one-dimensional) do not decay."""
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
    if config.optimizer == "muon":
        return Muon(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    kind = Adam if config.optimizer == "adam" else AdamW
    return kind(groups, lr=config.lr, fused=fused)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return a context in which convolutions and the head have this precision, and losses float32.

    On a GPU float32 convolutions use TF32, torch's default.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


class _EpochSums:
    """Sums of an epoch's losses and correct predictions, kept on the device until many steps are read together.

    Until then, the first loss or gradient that is not finite blocks its own step and all later ones on the device, by
    the flag with which `torch.amp.GradScaler` makes fused optimizers skip a step. With other optimizers, every step is
    read at once.
    """

    def __init__(self, epoch: int, optimizer: Optimizer, flush_every: int) -> None:
        self._epoch = epoch
        self._optimizer = optimizer
        self._flush_every = flush_every if getattr(optimizer, "_step_supports_amp_scaling", False) else 1
        self._steps: list[tuple[Tensor, int, float]] = []
        self._blocked: Tensor | None = None
        self._flushed = 0
        self.loss, self.hits, self.pictures = 0.0, 0.0, 0

    def before_step(self, loss: Tensor, hits: Tensor, gradient: Tensor, pictures: int, lr: float) -> None:
        """Record the next step. Raises `Diverged` for it or an earlier one."""
        self._steps.append((torch.stack((loss, hits, gradient)), pictures, lr))
        if len(self._steps) == self._flush_every:
            self.flush()
        if self._flush_every > 1:
            bad = (~(loss.isfinite() & gradient.isfinite())).float()
            self._blocked = bad if self._blocked is None else torch.maximum(self._blocked, bad)
            setattr(self._optimizer, "found_inf", self._blocked)  # noqa: B010 - an attribute that its type does not have

    def flush(self) -> None:
        """Read the steps recorded since the last flush; only here does the host wait for the device."""
        rows = torch.stack([row for row, _, _ in self._steps]).tolist() if self._steps else []
        for (mean_loss, hits, norm), (_, pictures, lr) in zip(rows, self._steps, strict=True):
            if not math.isfinite(mean_loss + norm):
                raise Diverged(self._epoch, self._flushed, lr, f"loss {mean_loss:.3g} and gradient norm {norm:.3g}")
            self.loss += mean_loss * pictures
            self.hits += hits
            self.pictures += pictures
            self._flushed += 1
        self._steps.clear()


# ---------------------------------------------------------------------------------------------------------------------
# Small parts


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _mistakes(predictions: Tensor, wrong: Tensor) -> tuple[Mistake, ...]:
    """Return the most confident mistakes; `wrong` (N,) holds each prediction's probability, or -1 if it is right."""
    most = wrong.topk(min(MISTAKES, len(wrong)))
    rows = zip(map(int, most.indices), map(int, predictions[most.indices]), _floats(most.values), strict=True)
    return tuple(Mistake(*row) for row in rows if row[2] >= 0)


def _class_weights(counts: tuple[int, ...], config: TrainingConfig) -> Tensor:
    """Return class weights N / (C * n_c), (classes,), 1 on average over the pictures; ones without weighted loss."""
    n = torch.tensor(counts, dtype=torch.float32)
    if config.class_balance != "weighted loss":
        return torch.ones_like(n)
    # The weight of a class without pictures is never used
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
