"""What the benchmarks share: networks, bare steps, processes that take turns, whole studies, medians."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import statistics
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from data.augment import AugmentConfig
from data.batches import EvaluationBatches, TrainingBatches
from data.cache import Part
from model.network import ModelConfig, MushroomCNN
from model.training import Batches, EpochMetrics, Precision, TrainingConfig, autocast, fit, make_optimizer
from search_space import PROFILES, Config, Profile

if TYPE_CHECKING:
    from data.prepare import Pictures
    from tuning.devices import Slot
    from tuning.events import StudyEvent
    from tuning.session import MakeWorkers, SearchSession

QUICK = PROFILES["quick"]
CPU = torch.device("cpu")

TYPICAL = Config(
    image_size=48,
    views=1,
    model=ModelConfig(
        classes=9, width=0.375, stride_pattern="every", dilation_pattern="none", pooling="max", dropout=0.1
    ),
    augment=AugmentConfig(strength=0.9, reuse_originals=True, fresh=True),
    training=TrainingConfig(
        optimizer="sgd",
        lr=0.17,
        weight_decay=0.006,
        schedule="step",
        step_factor=0.2,
        step_period=4,
        epochs=10,
        batch_size=32,
        label_smoothing=0.08,
        class_balance="weighted loss",
    ),
)
"""The configuration with the median FLOPs of 198 random ones within the budget of the `quick` profile."""
HAND_TUNED = Config(
    image_size=128,
    views=3,
    model=ModelConfig(classes=9),
    augment=AugmentConfig(strength=1.0, reuse_originals=True, fresh=True),
    training=TrainingConfig(
        optimizer="sgd", lr=0.1, schedule="step", step_factor=0.1, step_period=5, epochs=15, batch_size=32
    ),
)
"""The hand-tuned recipe at full width, but with pictures of half its 256 pixels."""


def named(config: Config) -> str:
    """Return a configuration in a few words."""
    model, training = config.model, config.training
    return (
        f"{config.image_size} px, width {model.width:g}, strides {model.stride_pattern}, dilation "
        f"{model.dilation_pattern}, dropout {model.dropout:g}, {training.optimizer}, augmentation strength "
        f"{config.augment.strength:g}, {config.cost.flops / 1e6:,.1f} MFLOP per picture"
    )


def some(part: Part, count: int) -> Part:
    """Return up to `count` pictures of a part, spread over its classes (pictures are sorted by class)."""
    rows = np.linspace(0, len(part.labels) - 1, min(count, len(part.labels))).astype(np.int64)
    return replace(part, indices=part.indices[rows], labels=part.labels[rows])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and the quartiles around it, or the extremes of fewer than four values."""
    middle = statistics.median(values)
    low, high = (min(values), max(values)) if len(values) < 4 else statistics.quantiles(values, n=4)[::2]
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


# -- training


def training_batches(config: Config, part: Part, device: torch.device = CPU, seed: int = 0) -> TrainingBatches:
    """Return the batches of one part of the data for a configuration, built as a worker builds them."""
    return TrainingBatches(
        part,
        batch_size=config.training.batch_size,
        views=config.views,
        augment=config.augment,
        oversample=config.training.class_balance == "oversampling",
        seed=seed,
        device=device,
    )


def trained(config: Config, train: Part, validation: Part, seed: int, precision: Precision = "bfloat16") -> MushroomCNN:
    """Return a network trained to the last epoch on the CPU, with the average of its weights."""
    torch.manual_seed(seed)
    model = MushroomCNN(config.model)
    averaged = copy.deepcopy(model)
    batches, judged = training_batches(config, train, seed=seed), EvaluationBatches(validation, device=CPU)
    for _ in fit(model, batches, judged, config.training, seed=seed, averaged=averaged, precision=precision):
        pass
    return averaged.eval()


def gentle(config: Config) -> Config:
    """Return a configuration that can train for any number of epochs: it learns nothing, but never diverges."""
    return replace(config, training=replace(config.training, epochs=10_000, lr=1e-6))


def endless_epochs(
    config: Config, batches: Batches, part: Part, precision: Precision, device: torch.device = CPU
) -> Iterator[EpochMetrics]:
    """Train as a worker does, one epoch per iteration; validation is two pictures, so that it takes no time."""
    validation = EvaluationBatches(some(part, 2), device=device)
    model = MushroomCNN(config.model).to(device)
    return fit(model, batches, validation, gentle(config).training, seed=0, precision=precision)


def bare_step(
    config: Config,
    precision: Precision,
    device: torch.device = CPU,
    memory_format: torch.memory_format = torch.channels_last,
) -> Callable[[], None]:
    """Return a function that does forward, loss, backward and step on one batch that stays on the device."""
    batch, size = config.training.batch_size, config.image_size
    model = MushroomCNN(config.model).to(device).to(memory_format=memory_format)
    optimizer = make_optimizer(model, gentle(config).training)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=memory_format)
    labels = torch.arange(batch, device=device) % config.model.classes

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, precision):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def faster_precision(config: Config, slots: Sequence[Slot]) -> Precision:
    """Return the precision that `--precision auto` chooses here for a study of such networks."""
    from tuning.timing import time_steps

    timing = time_steps([config], pictures=1, slots=slots, precisions=("float32", "bfloat16"))
    return timing.comparison.faster if timing.comparison else "float32"


# -- processes


class Subprocess:
    """A spawned process that builds a function and calls it on request.

    Several of them can take turns on the same work, so that a busy machine slows all of them.
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        """Start the process and wait until it has called `make(*arguments)`."""
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, arguments))
        self._process.start()
        there.close()  # otherwise the end of the process would go unnoticed
        self._pipe.recv()

    def __call__(self, *arguments: Any) -> Any:
        """Call the function and wait for its result."""
        self.ask(*arguments)
        return self.answer()

    def ask(self, *arguments: Any) -> None:
        """Request a call of the function without waiting for its result."""
        self._pipe.send(arguments)

    def answer(self) -> Any:
        """Wait for the result of the call. Raises EOFError if the process has ended."""
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
    function = make(*arguments)
    pipe.send(None)
    while (call := pipe.recv()) is not None:
        pipe.send(function(*call))


# -- whole studies


@contextlib.contextmanager
def quiet_study(
    pictures: Pictures,
    results: Path,
    *,
    trials: int,
    name: str = "benchmark",
    profile: Profile = QUICK,
    scheduler: str = "promote",
    storage: str | None = None,
    make_workers: MakeWorkers | None = None,
) -> Generator[tuple[SearchSession, Iterator[StudyEvent]]]:
    """Run a study on the CPU as `study.py` does, with its notes and plots, and with a screen that prints nothing.

    Yields the session and its events.
    """
    from commands.console import Screen, make_console
    from reporting.study_note import StudyNote
    from reporting.trial_note import TrialNotes
    from tuning.coordinator import Plan
    from tuning.devices import slots
    from tuning.session import open_session
    from tuning.workers import LocalWorkers

    with open_session(
        pictures,
        plan=Plan(trials=trials),
        name=name,
        profile=profile,
        scheduler=scheduler,
        slots=slots("cpu", None),
        precision="auto",
        results=results,
        storage=storage,
        make_workers=make_workers or LocalWorkers,
        make_notes=TrialNotes,
    ) as session:
        study, folder = session.study, session.folder
        note = StudyNote(
            study, folder, catalog=pictures.catalog, split=pictures.split, profile=session.profile, trials=trials
        )
        note.write_note()
        console = make_console()
        console.quiet = True
        screen = Screen(console, study, trials=trials, slots=len(session.slots), expected=10.0)

        def events() -> Generator[StudyEvent]:
            with contextlib.closing(session.run()) as run:
                for event in run:
                    screen.show(event)
                    note.receive(event)
                    yield event
            note.update()

        with contextlib.closing(events()) as shown:
            yield session, shown


@contextlib.contextmanager
def dashboard(folder: Path, name: str) -> Generator[str]:
    """Serve a study in `folder` with optuna-dashboard, and yield the address of its page."""
    import optuna

    from reporting.dashboard import make
    from tuning.folder import sqlite_url

    server, address = make(optuna.load_study(study_name=name, storage=sqlite_url(folder)), folder / "artifacts")
    with server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield address
        finally:
            server.shutdown()
