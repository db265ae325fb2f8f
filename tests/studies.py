"""Tiny real studies: pictures on disk, the command in its own process or in this one, and workers that are threads.

    prepare -> Tiny: a folder of pictures and its cache        Tiny.coordinator(...) -> the search, in this process
    Tiny.begin(...) -> the command as a process to be killed   Tiny.command(...) -> the command, run here to its end
    Tiny.after(...) -> the arguments of another command        run_here(...) -> any command, run here to its end

Everything trains for real: three classes of 32 px pictures, so that an epoch takes a fraction of a second.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pictures import class_folders

import study as command_line
from data import catalog, sources
from data.augment import AugmentConfig
from data.cache import CacheHandle, build
from data.split import split
from model.network import ModelConfig
from model.training import TrainingConfig
from search_space import PROFILES, Config, suggest
from tuning import storage, trainer, workers
from tuning.coordinator import Coordinator, Happening, Plan, TrialAdvanced, TrialEnded, search
from tuning.devices import Slot
from tuning.folder import sqlite_url, study_folder
from tuning.jobs import Event, TrialJob, Workers
from tuning.sampling import SeededTPESampler
from tuning.scheduling import PrunerScheduler, Scheduler
from tuning.storage import Outcome
from tuning.trainer import Answer

HERE = Path(__file__).resolve().parent.parent
EPOCHS = 3
TINY = replace(PROFILES["quick"].within(32), epochs=EPOCHS, batch_size=16)
"""The space of the in-process studies: the `quick` profile's at the one size that the pictures have."""
PATIENCE = 120.0
"""Seconds after which a condition that must come true is given up."""


class ThreadWorkers:
    """The `Workers` protocol kept by threads of this process: the real training, and nothing to start."""

    def __init__(self, slots: Sequence[Slot] = (Slot(),)) -> None:
        self.slots = slots
        self._heard: queue.Queue[tuple[_Line, Event]] = queue.Queue()
        self._lines: dict[int, _Line] = {}

    def start(self, slot: int, job: TrialJob) -> None:
        self.stop(slot)
        self._lines[slot] = _Line(slot, job, self._heard)

    def proceed(self, slot: int) -> None:
        self._lines[slot].answers.put("proceed")

    def stop(self, slot: int) -> None:
        line = self._lines.pop(slot, None)
        if line is not None:
            line.answers.put("stop")
            line.thread.join()

    def wait(self, timeout: float) -> list[tuple[int, Event]]:
        try:
            line, event = self._heard.get(timeout=timeout)
        except queue.Empty:
            return []
        return [(line.slot, event)] if self._lines.get(line.slot) is line else []

    def close(self) -> None:
        for slot in list(self._lines):
            self.stop(slot)


class _Line:
    """One job's thread, and its end of the line to the coordinator."""

    def __init__(self, slot: int, job: TrialJob, heard: queue.Queue[tuple[_Line, Event]]) -> None:
        self.slot = slot
        self.answers: queue.Queue[Answer] = queue.Queue()
        self._heard = heard
        self.thread = threading.Thread(target=trainer.run, args=(job, self), daemon=True)
        self.thread.start()

    def send(self, event: Event) -> None:
        self._heard.put((self, event))

    def answer(self) -> Answer:
        return self.answers.get()

    def stop_asked(self) -> bool:
        return not self.answers.empty() and self.answers.get() == "stop"


@dataclass(kw_only=True)
class Tiny:
    """A folder of pictures, its cache, and studies of it under `results`."""

    folder: Path
    data: CacheHandle
    results: Path
    options: tuple[str, ...] = ()
    """Of the command, beside those that say where things lie."""
    draw: Callable[[Any], Config] = field(default=partial(suggest, profile=TINY, classes=3))
    """The space of in-process studies."""

    def at(self, results: Path, *options: str) -> Tiny:
        """The same pictures for studies that lie elsewhere."""
        results.mkdir(parents=True, exist_ok=True)
        return replace(self, results=results, options=options)

    # -- the study as it lies on the disk

    @property
    def study_folder(self) -> Path:
        return self.results / "tiny"

    def directory(self, number: int) -> Path:
        return self.study_folder / "trials" / f"{number:04d}"

    def trials(self, study: str = "tiny") -> list[FrozenTrial]:
        """As anybody reads them."""
        stored = optuna.load_study(study_name=study, storage=sqlite_url(self.study_folder))
        return stored.get_trials()

    def epochs(self, study: str = "tiny") -> dict[int, tuple[str, int]]:
        """Trial number -> state and epochs reported, read straight from the database while a study runs."""
        database = self.study_folder / "study.db"
        query = """SELECT number, state, count(step) FROM trials JOIN studies USING (study_id)
                   LEFT JOIN trial_intermediate_values USING (trial_id) WHERE study_name = ? GROUP BY number"""
        try:
            with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
                return {number: (state, count) for number, state, count in connection.execute(query, [study])}
        except sqlite3.OperationalError:  # not yet there
            return {}

    def running(self, number: int, epochs: int = 1, study: str = "tiny") -> bool:
        """Whether a trial is being trained and has reported so many epochs."""
        state, reported = self.epochs(study).get(number, ("", 0))
        return state == "RUNNING" and reported >= epochs

    # -- the command

    def arguments(self, *more: str) -> list[str]:
        """Of the command; a later option replaces an earlier one of its name."""
        places = ["--data", str(self.folder), "--cache", str(self.folder.parent / "cache"), "--results"]
        words = [*places, str(self.results), "--study", "tiny", "--profile", "quick", "--epochs", "3"]
        words += [*self.options, *more]
        return [word for pair in dict(zip(words[::2], words[1::2], strict=True)).items() for word in pair]

    def after(self, command: str, *more: str) -> list[str]:
        """The arguments of a command that comes after the study."""
        cache = [] if command == "predict" else ["--cache", str(self.folder.parent / "cache")]
        return [command, *more, "--study", "tiny", "--results", str(self.results), *cache]

    def command(self, *more: str) -> Finished:
        """Runs it here, with worker processes, to its end."""
        return run_here(*self.arguments(*more))

    @contextlib.contextmanager
    def begin(self, *more: str, words: list[str] | None = None) -> Iterator[Begun]:
        """Starts it as a process in a group of its own, as a shell does; what is left of it is killed at the end.

        `words`: the arguments of another command.
        """
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited, where these tests run in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.results.mkdir(parents=True, exist_ok=True)
        output = self.results / f"output-{time.monotonic_ns()}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "study.py"), *(words or self.arguments(*more))],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        begun = Begun(process=process, output=output)
        try:
            yield begun
        finally:
            process.kill()
            process.wait()
            for worker in begun.seen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()

    # -- the search in this process

    def open(
        self,
        *,
        sampler: BaseSampler | None = None,
        pruner: BasePruner | None = None,
        first_trials: dict[str, dict[str, Any]] | None = None,
    ) -> optuna.Study:
        """The study with fresh objects of everything, as a new process has them."""
        return storage.open_study(
            sqlite_url(study_folder(self.results, "tiny")),
            "tiny",
            sampler=sampler or SeededTPESampler(0),
            pruner=pruner or NopPruner(),
            identity={},
            first_trials=first_trials or {},
        )

    def coordinator(
        self,
        trials: int,
        *,
        study: optuna.Study | None = None,
        workers: Workers | None = None,
        scheduler: Scheduler | None = None,
        draw: Callable[[Any], Config] | None = None,
        **plan: Any,
    ) -> Coordinator:
        """A coordinator of this study, with workers that are threads where no others are given."""
        return Coordinator(
            study or self.open(),
            workers=workers or ThreadWorkers(),
            scheduler=scheduler or PrunerScheduler(),
            assign=search(draw or self.draw, seed=0),
            plan=Plan(trials=trials, **plan),
            data=self.data,
            folder=self.study_folder,
        )


@dataclass(kw_only=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(kw_only=True)
class Begun:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    output: Path
    seen: set[psutil.Process] = field(default_factory=set[psutil.Process])
    """Every worker that was ever looked up."""

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Waits for it; fails when the process ends before."""
        until(lambda: condition() or self.process.poll() is not None, what)
        assert condition(), f"the command ended with {self.process.returncode} before {what}:\n{self.text}"

    def end(self) -> int:
        """Waits for its end."""
        until(lambda: self.process.poll() is not None, "the end of the command")
        return self.process.returncode

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes, as the system lists them."""
        found: list[psutil.Process] = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a short-lived child, git, has ended meanwhile
                found += [child] * any("spawn_main" in word for word in child.cmdline())
        self.seen.update(found)
        return found


def prepare(folder: Path) -> Tiny:
    """Writes the pictures under `folder` and builds their cache."""
    pictures = class_folders(folder / "tiny", classes=3, each=14, size=32)
    cache = folder / "cache"
    found = catalog.scan(sources.resolve(str(pictures), cache_dir=cache, pictures=None), cache_dir=cache)
    return Tiny(
        folder=pictures,
        data=build(found, split(found), TINY.sizes, cache_dir=cache),
        results=folder / "results",
    )


def run_here(*words: str) -> Finished:
    """Runs `python study.py` with these arguments in this process, with worker processes, to its end."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["study.py", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return Finished(code=code, out=out.getvalue(), err=err.getvalue())


@contextlib.contextmanager
def threads_for_processes() -> Iterator[None]:
    """Commands that are run here train in threads: the same numbers, and nothing that takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "LocalWorkers", ThreadWorkers)
        yield


@contextlib.contextmanager
def steady_threads() -> Iterator[None]:
    """One core, and threads for workers, but in the commands that are processes themselves."""
    count = torch.get_num_threads()
    with one_core(), threads_for_processes():
        yield
    torch.set_num_threads(count)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """One thread per worker on any machine: of two threads that share a busy core, one spins while it waits."""
    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        yield
        return
    allowed = process.cpu_affinity()
    process.cpu_affinity(allowed[-1:])
    try:
        yield
    finally:
        process.cpu_affinity(allowed)


def config(**changes: Any) -> Config:
    """A small point of the space, with changes of its training."""
    training = TrainingConfig(optimizer="adam", lr=1e-3, schedule="cosine", epochs=EPOCHS, batch_size=16)
    return Config(
        image_size=32,
        views=1,
        model=ModelConfig(classes=3, width=0.25, stride_pattern="every", dropout=0.2),
        augment=AugmentConfig(strength=0.5, reuse_originals=False, fresh=True),
        training=replace(training, **changes),
    )


def recorded(curve: list[float], *, outcome: Outcome = Outcome.COMPLETE, **attributes: Any) -> FrozenTrial:
    """A trial as the coordinator leaves it, with this validation top-1 after each epoch, for a made-up study."""
    known: dict[str, Any] = {"config": config().to_dict(), "seed": 1, "seconds": 2.0 * len(curve), "outcome": outcome}
    if curve:
        known |= {"best_top1": max(curve), "best_epoch": curve.index(max(curve))}
    complete = outcome is Outcome.COMPLETE
    failed = outcome in (Outcome.FAILED, Outcome.DUPLICATE)
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.FAIL if failed else TrialState.PRUNED,
        value=max(curve) if complete else None,
        intermediate_values=dict(enumerate(curve)),
        user_attrs=known | attributes,
    )


def until(condition: Callable[[], object], what: str) -> None:
    """Polls a condition."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {PATIENCE:.0f} s"
        time.sleep(0.01)


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; one that only waits to be buried has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def outcomes(happenings: list[Happening]) -> list[tuple[int, Any]]:
    """Number and outcome of the trials that ended."""
    return [(end.number, end.outcome) for end in happenings if isinstance(end, TrialEnded)]


def advanced(happening: Happening, number: int, kind: type) -> bool:
    """Whether this is trial `number` going forward by a `kind`: Progress or EpochMetrics."""
    return isinstance(happening, TrialAdvanced) and happening.number == number and isinstance(happening.progress, kind)
