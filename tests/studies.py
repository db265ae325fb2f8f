"""Tiny real studies: pictures on disk, the command in its own process or in this one, and workers that are threads.

    prepare -> Tiny: a folder of pictures and its cache        Tiny.coordinator(...) -> the search, in this process
    Tiny.start(...) -> the command as a process to kill        Tiny.command(...) -> the command, run here to its end
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
import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pictures import class_folders

import study as command_line
from data.augment import AugmentConfig
from data.cache import CacheHandle
from data.prepare import Pictures, find_pictures, identity
from model.network import ModelConfig
from model.training import TrainingConfig
from search_space import PROFILES, Config, suggest
from tuning import trainer
from tuning.coordinator import Coordinator, Plan, search
from tuning.database import connect, open_study
from tuning.devices import Slot
from tuning.events import StudyEvent, TrialAdvanced, TrialEnded
from tuning.folder import sqlite_url, study_folder
from tuning.jobs import TrialJob, WorkerMessage, Workers
from tuning.sampling import FeasibleTPESampler
from tuning.scheduling import PrunerScheduler, Scheduler
from tuning.session import MakeWorkers, Session
from tuning.settings import Settings
from tuning.space import FeasibleSpace
from tuning.trainer import Answer
from tuning.trials import Outcome

HERE = Path(__file__).resolve().parent.parent
EPOCHS = 3
TINY = replace(PROFILES["quick"].within(32), epochs=EPOCHS, batch_size=16)
"""The profile of the studies in this process: `quick` at the one size that the pictures have."""
PATIENCE = 120.0
"""Seconds to wait for a condition that must come true."""


class ThreadWorkers:
    """Workers that are threads of this process: the real training, and no process to start."""

    def __init__(self, slots: Sequence[Slot] = (Slot(),)) -> None:
        self.slots = dict(enumerate(slots))
        self._received: queue.Queue[tuple[_ThreadLink, WorkerMessage]] = queue.Queue()
        self._links: dict[int, _ThreadLink] = {}

    def start(self, slot: int, job: TrialJob) -> None:
        self.stop(slot)
        self._links[slot] = _ThreadLink(slot, job, self._received)

    def proceed(self, slot: int) -> None:
        self._links[slot].answers.put("proceed")

    def stop(self, slot: int) -> None:
        link = self._links.pop(slot, None)
        if link is not None:
            link.answers.put("stop")
            link.thread.join()

    def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
        try:
            link, message = self._received.get(timeout=timeout)
        except queue.Empty:
            return []
        return [(link.slot, message)] if self._links.get(link.slot) is link else []

    def close(self) -> None:
        for slot in list(self._links):
            self.stop(slot)


class _ThreadLink:
    """One job's thread, and its connection to the coordinator."""

    def __init__(self, slot: int, job: TrialJob, received: queue.Queue[tuple[_ThreadLink, WorkerMessage]]) -> None:
        self.slot = slot
        self.answers: queue.Queue[Answer] = queue.Queue()
        self._received = received
        self.thread = threading.Thread(target=trainer.run, args=(job, self, trainer.CheckpointFolder(job)), daemon=True)
        self.thread.start()

    def send(self, message: WorkerMessage) -> None:
        self._received.put((self, message))

    def answer(self) -> Answer:
        return self.answers.get()

    def stop_asked(self) -> bool:
        return not self.answers.empty() and self.answers.get() == "stop"


@dataclass(kw_only=True)
class Tiny:
    """A folder of pictures, its cache, and studies of it under `results`."""

    folder: Path
    pictures: Pictures
    data: CacheHandle
    results: Path
    options: tuple[str, ...] = ()
    """Options of the command, beside those that say where things are."""
    draw: Callable[[Any], Config] = field(default=partial(suggest, profile=TINY, classes=3))
    """The space of studies in this process."""

    def at(self, results: Path, *options: str) -> Tiny:
        """Return the same pictures for studies in another folder."""
        results.mkdir(parents=True, exist_ok=True)
        return replace(self, results=results, options=options)

    # -- the study as it lies on the disk

    @property
    def study_folder(self) -> Path:
        return self.results / "tiny"

    def directory(self, number: int) -> Path:
        return self.study_folder / "trials" / f"{number:04d}"

    def trials(self, study: str = "tiny") -> list[FrozenTrial]:
        """Return the trials as any program reads them."""
        stored = optuna.load_study(study_name=study, storage=sqlite_url(self.study_folder))
        return stored.get_trials()

    def epochs(self, study: str = "tiny") -> dict[int, tuple[str, int]]:
        """Return state and number of reported epochs by trial, read from the database while a study runs."""
        database = self.study_folder / "study.db"
        query = """SELECT number, state, count(step) FROM trials JOIN studies USING (study_id)
                   LEFT JOIN trial_intermediate_values USING (trial_id) WHERE study_name = ? GROUP BY number"""
        try:
            with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
                return {number: (state, count) for number, state, count in connection.execute(query, [study])}
        except sqlite3.OperationalError:  # it does not exist yet
            return {}

    def running(self, number: int, epochs: int = 1, study: str = "tiny") -> bool:
        """Return whether a trial is running and has reported this many epochs."""
        state, reported = self.epochs(study).get(number, ("", 0))
        return state == "RUNNING" and reported >= epochs

    # -- the command

    def arguments(self, *more: str) -> list[str]:
        """Return the arguments of the command; a later option replaces an earlier one of its name."""
        argv = ["--data", str(self.folder), "--cache", str(self.folder.parent / "cache"), "--results"]
        argv += [str(self.results), "--study", "tiny", "--profile", "quick", "--epochs", "3"]
        argv += ["--scheduler", "median"]
        argv += [*self.options, *more]
        options = dict(zip(argv[::2], argv[1::2], strict=True))
        return [argument for option in options.items() for argument in option]

    def after(self, command: str, *more: str) -> list[str]:
        """Return the arguments of a command that comes after the study."""
        cache = [] if command == "predict" else ["--cache", str(self.folder.parent / "cache")]
        return [command, *more, "--study", "tiny", "--results", str(self.results), *cache]

    def command(self, *more: str) -> Finished:
        """Run the command here to its end."""
        return run_here(*self.arguments(*more))

    @contextlib.contextmanager
    def start(self, *more: str, argv: list[str] | None = None) -> Iterator[RunningCommand]:
        """Start the command as a process in a group of its own, as a shell does; kill what is left of it at the end.

        `argv`: the arguments of another command.
        """
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited, where these tests run in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.results.mkdir(parents=True, exist_ok=True)
        output = self.results / f"output-{time.monotonic_ns()}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "study.py"), *(argv or self.arguments(*more))],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        running = RunningCommand(process=process, output=output)
        try:
            yield running
        finally:
            process.kill()
            process.wait()
            for worker in running.seen:
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
        """Return the study with fresh objects of everything, as a new process has them."""
        return open_study(
            connect(sqlite_url(study_folder(self.results, "tiny"))),
            "tiny",
            sampler=sampler or FeasibleTPESampler(0, FeasibleSpace(self.draw, lambda cost: True)),
            pruner=pruner or NopPruner(),
            identity={"data": identity(self.pictures, self.data), "seed": 0},
            first_trials=first_trials or {},
        )

    def session(self, study: optuna.Study | None = None, *, make_workers: MakeWorkers = ThreadWorkers) -> Session:
        """Return a session of the study, unlocked, whose workers are threads."""
        return Session(
            study=study or self.open(),
            folder=self.study_folder,
            url=sqlite_url(self.study_folder),
            settings=Settings(data=str(self.folder), test_data=None, pictures=None, storage=None),
            pictures=self.pictures,
            data=self.data,
            slots=[Slot()],
            make_workers=make_workers,
        )

    def coordinator(
        self,
        trials: int,
        *,
        study: optuna.Study | None = None,
        workers: Workers | None = None,
        make_scheduler: Callable[[optuna.Study], Scheduler] = PrunerScheduler,
        draw: Callable[[Any], Config] | None = None,
        **plan: Any,
    ) -> Coordinator:
        """Return a coordinator of this study's search; its workers are threads unless others are given."""
        session = self.session(study, make_workers=lambda slots: workers or ThreadWorkers(slots))
        return session.coordinator(
            session.study,
            assign=search(draw or self.draw, seed=0),
            plan=Plan(trials=trials, **plan),
            scheduler=make_scheduler(session.study),
            folder=session.folder,
        )


@dataclass(kw_only=True)
class Finished:
    """A command that has ended, with its exit code and what it printed."""

    code: int
    out: str
    err: str


@dataclass(kw_only=True)
class RunningCommand:
    """A command that runs as a process."""

    process: subprocess.Popen[bytes]
    output: Path
    seen: set[psutil.Process] = field(default_factory=set[psutil.Process])
    """Every worker process that was ever listed."""

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition; fail if the process ends first."""
        until(lambda: condition() or self.process.poll() is not None, what)
        assert condition(), f"the command ended with {self.process.returncode} before {what}:\n{self.text}"

    def end(self) -> int:
        """Wait for the end of the process and return its exit code."""
        until(lambda: self.process.poll() is not None, "the end of the command")
        return self.process.returncode

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    @property
    def workers(self) -> list[psutil.Process]:
        """The command's worker processes, as the system lists them."""
        found: list[psutil.Process] = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a short-lived child such as git has ended meanwhile
                found += [child] * any("spawn_main" in argument for argument in child.cmdline())
        self.seen.update(found)
        return found


def prepare(folder: Path) -> Tiny:
    """Write the pictures under `folder` and decode them into a cache."""
    root = class_folders(folder / "tiny", classes=3, each=14, size=32)
    cache = folder / "cache"
    pictures = find_pictures(str(root), cache_dir=cache)
    data = pictures.decode(TINY.sizes, cache_dir=cache)
    return Tiny(folder=root, pictures=pictures, data=data, results=folder / "results")


_injected: dict[str, Any] = {}
"""What `run_here` passes on to the commands."""


def run_here(*argv: str) -> Finished:
    """Run `python study.py` with these arguments in this process to its end."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["study.py", *argv]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line.main(**_injected)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return Finished(code=code, out=out.getvalue(), err=err.getvalue())


@contextlib.contextmanager
def threads_for_processes() -> Iterator[None]:
    """Have commands that are run here train in threads: the same numbers, and no processes to start."""
    _injected["make_workers"] = ThreadWorkers
    try:
        yield
    finally:
        _injected.clear()


@contextlib.contextmanager
def steady_threads() -> Iterator[None]:
    """Have commands that are run here train in threads on one core."""
    count = torch.get_num_threads()
    with one_core(), threads_for_processes():
        yield
    torch.set_num_threads(count)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Run on one core on any machine: of two threads that share a busy core, one would spin while it waits.

    Each of pytest-xdist's processes takes the next core, so that they do not all wait for the same one.
    """
    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        yield
        return
    allowed = process.cpu_affinity()
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    process.cpu_affinity([allowed[number % len(allowed)]])
    try:
        yield
    finally:
        process.cpu_affinity(allowed)


def config(**changes: Any) -> Config:
    """Return a small point of the space, with changes to its training."""
    training = TrainingConfig(optimizer="adam", lr=1e-3, schedule="cosine", epochs=EPOCHS, batch_size=16)
    return Config(
        image_size=32,
        views=1,
        model=ModelConfig(classes=3, width=0.25, stride_pattern="every", dropout=0.2),
        augment=AugmentConfig(strength=0.5, reuse_originals=False, fresh=True),
        training=replace(training, **changes),
    )


def recorded(curve: list[float], *, outcome: Outcome = Outcome.COMPLETE, **attributes: Any) -> FrozenTrial:
    """Return a trial as the coordinator leaves it, with this validation top-1 after each epoch, for a made-up study."""
    known: dict[str, Any] = {"config": config().to_dict(), "seed": 1, "seconds": 2.0 * len(curve), "outcome": outcome}
    if curve:
        known |= {"best_top1": max(curve), "best_top3": max(curve), "best_epoch": curve.index(max(curve))}
    complete = outcome is Outcome.COMPLETE
    failed = outcome in (Outcome.FAILED, Outcome.DUPLICATE)
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.FAIL if failed else TrialState.PRUNED,
        value=max(curve) if complete else None,
        intermediate_values=dict(enumerate(curve)),
        user_attrs=known | attributes,
    )


def until(condition: Callable[[], object], what: str) -> None:
    """Poll a condition until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{PATIENCE:.0f} s have passed without {what}"
        time.sleep(0.01)


def gone(process: psutil.Process) -> bool:
    """Return whether a process has ended, if only as a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def outcomes(events: list[StudyEvent]) -> list[tuple[int, Any]]:
    """Return number and outcome of each trial that ended."""
    return [(event.number, event.outcome) for event in events if isinstance(event, TrialEnded)]


def advanced(event: StudyEvent, number: int, kind: type) -> bool:
    """Return whether trial `number` has advanced by a `kind`: Progress or EpochMetrics."""
    return isinstance(event, TrialAdvanced) and event.number == number and isinstance(event.progress, kind)
