"""This program's own search on a simulated machine: the real coordinator, schedulers and samplers train table rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from benchmarks.search.machine import Machine
from benchmarks.search.tables import Row
from data.cache import CacheHandle
from model.training import EpochMetrics
from search_space import GUESS, HAND_TUNED, ORIGINAL
from tuning.coordinator import Coordinator, Plan
from tuning.devices import Slot
from tuning.jobs import Assignment, TrialJob, WorkerMessage
from tuning.sampling import SAMPLERS, one_seed
from tuning.scheduling import Decision, MakeScheduler, PromotionScheduler, Resume
from tuning.space import FeasibleSpace
from tuning.trials import Trial

BASELINES = (ORIGINAL, HAND_TUNED, GUESS)
NO_PICTURES = CacheHandle(directory=Path(), fingerprint="", split="", classes=())


@dataclass(frozen=True, kw_only=True)
class SimulatedStudy:
    """A policy: a study that is as long as its budget."""

    sampler: str
    """A name in `SAMPLERS`."""
    scheduler: MakeScheduler
    share: Callable[[int], float] | None = None
    """Returns the expected share of all trials' epochs that is trained, for a number of epochs, from which the number
    of trials is planned; None to begin new ones as long as the budget lasts."""
    first: Sequence[str] = ()
    """Names of the rows that the study begins with."""
    trials: int | None = None
    """Number of trials, if neither the budget nor the pool decides."""

    @property
    def anytime(self) -> bool:
        """Whether a smaller budget would only end the study earlier."""
        return self.share is None

    def __call__(self, machine: Machine, seed: int) -> None:
        """Run the study to its end. Raises BudgetSpent."""
        pool, first = machine.pool, [machine.pool.table.row(name) for name in self.first]
        available = len({*pool.drawn, *first})
        planned = round(machine.budget / self.share(machine.points)) if self.share else available
        trials = self.trials or min(max(machine.slots, planned), available)
        sampler = TableSampler(self.sampler, machine, seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for row in first:
            study.enqueue_trial(row.params, user_attrs={"baseline": row.name} if row.name in BASELINES else None)
        with tempfile.TemporaryDirectory() as folder:
            coordinator = Coordinator(
                study,
                workers=TableWorkers(machine),
                scheduler=self.scheduler(study, machine.points),
                assign=sampler.assignment,
                plan=Plan(trials=trials),
                data=NO_PICTURES,
                folder=Path(folder),
                describe=lambda trial, record: None,
            )
            for _ in coordinator.run():
                pass


class TableWorkers:
    """Workers that answer from a table, by the clock of a simulated machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._rows: dict[int, Row] = {}
        self._repeated: dict[int, list[EpochMetrics]] = {}
        self.slots = dict.fromkeys(range(machine.slots), Slot())

    def start(self, slot: int, job: TrialJob) -> None:
        """Begin a row, or resume it by sending its known epochs again, as from a checkpoint."""
        row = self._rows[slot] = self._machine.pool.table.row(str(job.assignment.name))
        if known := self._machine.trained.get(row, 0):
            self._repeated[slot] = [self._metrics(row, epoch) for epoch in reversed(range(known))]
        else:
            self._machine.start(slot, row)

    def proceed(self, slot: int) -> None:
        """Train the next epoch, unless known ones are still to be sent."""
        if slot not in self._repeated:
            self._machine.proceed(slot)
        elif not self._repeated[slot]:
            del self._repeated[slot]
            self._machine.start(slot, self._rows[slot])

    def stop(self, slot: int) -> None:
        """Free the slot."""
        self._repeated.pop(slot, None)

    def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
        """Return the next known epochs, or else the epoch that ends next. Raises BudgetSpent."""
        known: list[tuple[int, WorkerMessage]] = [(slot, left.pop()) for slot, left in self._repeated.items() if left]
        if known:
            return known
        slot, row, epoch = self._machine.wait()
        return [(slot, self._metrics(row, epoch))]

    def close(self) -> None:
        """Stop nothing: no process runs."""

    def _metrics(self, row: Row, epoch: int) -> EpochMetrics:
        top1 = self._machine.value(row, epoch)
        return EpochMetrics(
            epoch=epoch,
            train_loss=0.0,
            train_top1=0.0,
            validation_loss=0.0,
            top1=top1,
            top3=top1,
            confusion=(),
            lr=0.0,
            seconds=0.0,
            peak_memory=0,
        )


class TableSampler(BaseSampler):
    """A sampler whose proposals become the nearest rows, so that a study samples and learns from rows alone."""

    def __init__(self, name: str, machine: Machine, seed: int) -> None:
        self._space = FeasibleSpace(machine.pool.table.space, lambda cost: True)
        self._inner = SAMPLERS[name](seed, self._space)
        self._machine = machine
        self._seed = seed
        self._rows: dict[int, Row] = {}

    def assignment(self, trial: optuna.Trial) -> Assignment:
        """Return what a trial trains: its row."""
        if trial.number not in self._rows:
            _ = trial.relative_params  # samples: the row is chosen in `infer_relative_search_space`
        row = self._rows[trial.number]
        for name, distribution in row.distributions.items():
            trial._suggest(name, distribution)  # pyright: ignore[reportPrivateUsage]
        return Assignment(config=row.config, seed=0, epochs=self._machine.points, name=row.name)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Choose the trial's row, and return the distributions of the parameters that it has."""
        pool = self._machine.pool
        if fixed := trial.system_attrs.get("fixed_params"):
            row = next(row for row in pool.table.rows if row.params == fixed)
            pool.take(row)
        else:
            space = self._inner.infer_relative_search_space(study, trial)
            sampled = self._inner.sample_relative(study, trial, space)
            # Parameters that the sampler has not met yet are random.
            point = self._space.point(one_seed(self._seed, trial.number), sampled)
            row = pool.snap(point.params) if point else None
            if row is None:
                raise RuntimeError("a study asked for more trials than its pool has")
        self._rows[trial.number] = row
        return row.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the row's parameters."""
        return self._rows[trial.number].params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return one of the row's parameters."""
        return self._rows[trial.number].params[param_name]

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass the call on."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass the call on."""
        self._inner.after_trial(study, trial, state, values)


class ScreeningScheduler:
    """Scheduler that trains every trial for a few epochs, then the best ones to their ends, one after the other."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def after_epoch(self, trial: Trial) -> Decision:
        """Pause after the few epochs."""
        return Decision.PAUSE if trial.epochs == self._epochs else Decision.CONTINUE

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | None:
        """Resume the best paused trial once no new one is wanted."""
        paused = [trial for trial in trials if trial.is_paused and not new_wanted]
        best = max(paused, key=lambda trial: (trial.reached or 0.0, -trial.number), default=None)
        return Resume(best.number) if best else None


def promotion_scheduler(rungs: Sequence[int], keep: float) -> MakeScheduler:
    """Return a maker of promotion schedulers with these rungs, in epochs, that keep this share at each."""
    return lambda study, epochs: PromotionScheduler(rungs, keep)
