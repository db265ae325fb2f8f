"""The Python API: opens a study and builds its coordinator. Commands, tests and benchmarks use nothing else.

    with open_session(find_pictures("photos"), plan=Plan(trials=40)) as session:
        for event in session.run():
            print(event)

`find_study` opens a study that has been run, `OpenStudy.reopen` gives it slots and pictures to train with again.
No command line, signal or screen is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import optuna
from optuna.samplers import BaseSampler

from data import Track, expanded, no_track
from data.cache import CacheHandle
from data.prepare import Pictures, default_cache, find_pictures, identity
from data.report import describe_changes, write_report
from data.sources import NAMES
from model.training import Precision
from search_space import PROFILES, Config, Profile, baselines, portfolio, suggest
from tuning import StudyError, database, devices, forecast, ownership, settings
from tuning.coordinator import KEPT_CHECKPOINTS, Coordinator, Plan, search
from tuning.database import IDENTITY, load_study, open_study
from tuning.devices import RunThere, Slot, run_here
from tuning.events import StudyEvent, TrialRecord
from tuning.folder import RESULTS, sqlite_url, study_folder
from tuning.jobs import Assignment, Workers
from tuning.lock import sole_coordinator
from tuning.sampling import SAMPLERS
from tuning.scheduling import SCHEDULERS, MakeScheduler, Scheduler, trained_share
from tuning.settings import Settings
from tuning.space import FeasibleSpace, describe_space
from tuning.storage import Storage
from tuning.timing import Timing, settle_precision, typical
from tuning.trials import read_trials, write_trials_csv
from tuning.workers import LocalWorkers

MakeWorkers = Callable[[Sequence[Slot]], Workers]
"""Function that returns workers for the slots, such as `LocalWorkers`."""
Describe = Callable[[optuna.Trial, TrialRecord], None]
"""Function that adds pictures and notes to a trial before it is reported as finished."""
MakeNotes = Callable[[Path, CacheHandle], Describe]
"""Function that returns a `Describe` for a study, given its folder and pictures."""


class Space(Protocol):
    """Samples a configuration, as `search_space.suggest` does."""

    def __call__(self, trial: Any, /, profile: Profile, classes: int) -> Config:
        """Return a configuration, sampled with the methods of an Optuna trial."""
        ...


def no_notes(folder: Path, data: CacheHandle) -> Describe:
    """Return a `Describe` that adds nothing."""
    return lambda trial, record: None


@dataclass(frozen=True, kw_only=True)
class OpenStudy:
    """An open study: its database, its folder and its settings."""

    study: optuna.Study
    folder: Path
    """Folder of the study, which has the study's name."""
    url: str
    """URL of the study's database."""
    settings: Settings

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.folder.name

    @property
    def storage(self) -> Storage:
        """The study's database."""
        return cast(Storage, self.study._storage)  # pyright: ignore[reportPrivateUsage]

    @property
    def data_identity(self) -> str:
        """Text that identifies the pictures and their split."""
        return self.study.user_attrs[IDENTITY + "data"]

    @property
    def seed(self) -> int:
        """Seed of the search and of every trial."""
        return self.study.user_attrs[IDENTITY + "seed"]

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the study's lock, and turn errors of its database into StudyError."""
        explained, not_deleted = database.explained(self.url), database.not_deleted(self.study)
        with sole_coordinator(self.folder), explained, self.storage.sole_coordinator(self.name), not_deleted:
            yield

    def reopen(
        self,
        sizes: Iterable[int] | None = None,
        *,
        data: str | None = None,
        test_data: Path | None = None,
        parts: str | None = None,
        slots: Sequence[Slot] | None = None,
        precision: Literal["auto"] | Precision | None = None,
        cache_dir: Path | None = None,
        track: Track = no_track,
        make_workers: MakeWorkers = LocalWorkers,
        run_there: RunThere = run_here,
        make_notes: MakeNotes = no_notes,
    ) -> Session:
        """Read the study's pictures again and decode them at `sizes` (pixels), by default those of its trials.

        `data`, `test_data` and `parts` say where the pictures are now, if they have moved; `slots`, `precision` and
        `run_there` are those of `open_session`. Raises StudyError if the pictures have changed, and DataError if they
        cannot be read.
        """
        source = data or self.settings.data
        tested = test_data or (Path(self.settings.test_data) if self.settings.test_data else None)
        cache_dir = cache_dir or default_cache()
        pictures = find_pictures(
            source,
            test_data=tested,
            parts=parts or self.settings.parts,
            follow_links=self.settings.follow_links,
            near_duplicates=self.settings.near_duplicates,
            limit=self.settings.pictures,
            cache_dir=cache_dir,
            track=track,
        )
        trials = read_trials(self.study)
        if sizes is None:
            sizes = {trial.config.image_size for trial in trials if trial.config}
        handle = pictures.decode(sizes, cache_dir=cache_dir, track=track)
        then, now = self.data_identity, identity(pictures, handle)
        if then != now:
            changes = describe_changes(self.folder / "data_report.csv", pictures.catalog, pictures.split)
            raise StudyError(
                f"the pictures in {source} have changed since study '{self.name}' was started: {then} -> {now}"
                f"{f' ({changes})' if changes else ''}: restore them, say where they are now with --data PATH, or "
                "start another study with --study NAME"
            )
        trained = [trial.config for trial in trials if trial.config and trial.epochs]
        slots, timing = _settled(
            self.study,
            slots,
            precision,
            points=sorted(trained, key=lambda config: config.cost.flops),
            pictures=len(pictures.split.train),
            run_there=run_there,
        )
        return Session(
            study=self.study,
            folder=self.folder,
            url=self.url,
            settings=self.settings,
            pictures=pictures,
            data=handle,
            slots=slots,
            timing=timing,
            make_workers=make_workers,
            run_there=run_there,
            make_notes=make_notes,
        )


@dataclass(frozen=True, kw_only=True)
class Session(OpenStudy):
    """An open study with decoded pictures and slots to train in."""

    pictures: Pictures
    data: CacheHandle
    """The decoded pictures."""
    slots: Sequence[Slot]
    timing: Timing | None = None
    """What was timed to choose the precision of the slots; None if it was given."""
    make_workers: MakeWorkers = LocalWorkers
    run_there: RunThere = run_here
    make_notes: MakeNotes = no_notes

    @property
    def own_device(self) -> str:
        """Torch's name for the device on which this process evaluates networks."""
        return devices.or_cpu(self.slots[0].device)

    def coordinator(
        self,
        study: optuna.Study,
        *,
        assign: Callable[[optuna.Trial], Assignment],
        plan: Plan,
        scheduler: Scheduler,
        folder: Path,
        keep: int = KEPT_CHECKPOINTS,
    ) -> Coordinator:
        """Return a coordinator of this study, or of a sibling study, in the session's slots."""
        return Coordinator(
            study,
            workers=self.make_workers(self.slots),
            scheduler=scheduler,
            assign=assign,
            plan=plan,
            data=self.data,
            folder=folder,
            keep=keep,
            describe=self.make_notes(self.folder, self.data),
        )


@dataclass(frozen=True, kw_only=True)
class SearchSession(Session):
    """A session whose coordinator samples, trains and prunes trials until the plan is fulfilled."""

    profile: Profile
    plan: Plan
    points: Sequence[Config]
    """Typical points of the space within the budgets, cheapest first."""
    searcher: Coordinator
    trained_share: float
    """Expected share of all trials' epochs that the scheduler lets train."""

    def run(self) -> Generator[StudyEvent]:
        """Run the search, yield its events and write trials.csv at the end. Raises what `Coordinator.run` raises.

        Leaving the loop early stops the workers; the next session resumes after the last finished epochs.
        """
        try:
            yield from self.searcher.run()
        finally:
            write_trials_csv(self.study, self.folder / "trials.csv")

    def expected_seconds(self) -> float:
        """Return the expected seconds of one trial in one slot, given that the scheduler ends most of them early."""
        known = forecast.seconds_so_far(read_trials(self.study), self.slots[0], self.run_there)
        return known or forecast.seconds_per_trial(
            self.points,
            pictures=len(self.pictures.split.train),
            trained_share=self.trained_share,
            slots=self.slots,
            timing=self.timing,
            run_there=self.run_there,
        )


@contextmanager
def open_session(
    pictures: Pictures,
    *,
    plan: Plan,
    name: str | None = None,
    profile: Profile = PROFILES["quick"],
    space: Space = suggest,
    sampler: str | BaseSampler = "tpe",
    scheduler: str | MakeScheduler = "promote",
    seed: int = 0,
    slots: Sequence[Slot] | None = None,
    precision: Literal["auto"] | Precision | None = None,
    results: Path = RESULTS,
    storage: str | None = None,
    cache_dir: Path | None = None,
    track: Track = no_track,
    make_workers: MakeWorkers = LocalWorkers,
    run_there: RunThere = run_here,
    make_notes: MakeNotes = no_notes,
    argv: Sequence[str] = (),
) -> Generator[SearchSession]:
    """Start a study, or resume it, and hold its lock.

    Args:
        pictures: The data set, from `find_pictures`.
        plan: How many trials are trained, and when the run stops. The FLOPs budget is by default the profile's.
        name: Name of the study and of its folder; by default the data set's.
        profile: What a trial may cost; image sizes that would only enlarge the pictures are left out.
        space: Function that samples the configurations.
        sampler: A name in `SAMPLERS`, or a sampler.
        scheduler: A name in `SCHEDULERS`, or a function that returns a scheduler for (study, epochs).
        seed: Seed of the search and of every trial.
        slots: Where trials are trained; by default one per CPU core or GPU.
        precision: Precision of training; "auto" is the faster one, see `timing.settle_precision`. By default that of
            the slots, or "auto" without slots.
        results: The folder of all studies.
        storage: URL of the database; by default an SQLite file in the study's folder.
        cache_dir: Where decoded pictures are kept; by default the user's cache folder.
        track: Function that shows the progress of decoding.
        make_workers: Function that returns workers for the slots.
        run_there: Function that times training steps on the machine of the first slot, if that is another machine.
        make_notes: Returns the function that describes trials, such as `reporting.trial_note.TrialNotes`.
        argv: Command-line arguments to store for later commands.

    Raises StudyError if another coordinator holds the study, if it was started with other settings, or if its folder or
    database cannot be used. Raises DataError if the pictures cannot be decoded.
    """
    make_scheduler = SCHEDULERS[scheduler] if isinstance(scheduler, str) else scheduler
    plan = replace(plan, max_flops=plan.max_flops or profile.max_flops)
    profile = replace(profile, max_flops=plan.max_flops)
    profile = profile.fitted(pictures.catalog.median_short_side, len(pictures.split.train))
    name = pictures.name if name is None else name
    folder = study_folder(results, name)
    with sole_coordinator(folder):
        handle = pictures.decode(profile.sizes, cache_dir=cache_dir or default_cache(), track=track)
        draw = partial(space, profile=profile, classes=len(handle.classes))
        feasible = FeasibleSpace(draw, plan.feasible)
        affordable = [params for wish in portfolio(profile) if (params := feasible.affordable(wish, profile))]
        facts = {
            "data": identity(pictures, handle),
            "profile": profile.name,
            "epochs": profile.horizon,
            "views": profile.views,
            "batch size": profile.batch_size,
            "flips": profile.flips,
            "max params": plan.max_parameters,
            "max flops": plan.max_flops,
            "sampler": sampler if isinstance(sampler, str) else type(sampler).__name__,
            "scheduler": scheduler if isinstance(scheduler, str) else getattr(scheduler, "__name__", "scheduler"),
            "seed": seed,
        }
        url = storage or sqlite_url(folder)
        opened = database.connect(url, folder)
        with database.explained(url), opened.sole_coordinator(name):
            study = open_study(
                opened,
                name,
                sampler=SAMPLERS[sampler](seed, feasible) if isinstance(sampler, str) else sampler,
                identity=facts | describe_space(draw),
                first_trials=baselines(profile),
                portfolio=affordable,
                folder=folder,
            )
            session_id = ownership.begin_session(study, folder)
            write_report(pictures.catalog, folder / "data_report.csv", pictures.split)
            started = Settings(
                data=pictures.source if pictures.source in NAMES else _absolute(Path(pictures.source)),
                test_data=_absolute(pictures.test_data) if pictures.test_data else None,
                parts=pictures.parts,
                follow_links=pictures.follow_links,
                pictures=pictures.limit,
                near_duplicates=pictures.near_duplicates,
                study_id=ownership.study_id(study),
                session=session_id,
                storage=database.without_password(database.absolute(storage)) if storage else None,
                argv=list(argv),
            )
            started.save(folder)
            points = typical(draw, plan.feasible, affordable)
            shown = len(pictures.split.train)
            slots, timing = _settled(study, slots, precision, points=points, pictures=shown, run_there=run_there)
            session = Session(
                study=study,
                folder=folder,
                url=url,
                settings=started,
                pictures=pictures,
                data=handle,
                slots=slots,
                timing=timing,
                make_workers=make_workers,
                run_there=run_there,
                make_notes=make_notes,
            )
            with database.not_deleted(study):
                yield SearchSession(
                    **vars(session),
                    profile=profile,
                    plan=plan,
                    points=points,
                    trained_share=trained_share(scheduler, profile.horizon) if isinstance(scheduler, str) else 1.0,
                    searcher=session.coordinator(
                        study,
                        assign=search(draw, seed),
                        plan=plan,
                        scheduler=make_scheduler(study, profile.horizon),
                        folder=folder,
                    ),
                )


def find_study(results: Path = RESULTS, name: str | None = None, storage: str | None = None) -> OpenStudy:
    """Open a study that has been run: the named one, or the one that was run last. Raises StudyError."""
    folder, started = settings.recall(results, name)
    url = settings.url(started, folder, storage)
    return OpenStudy(study=load_study(url, folder.name, folder), folder=folder, url=url, settings=started)


def _settled(
    study: optuna.Study,
    slots: Sequence[Slot] | None,
    precision: Literal["auto"] | Precision | None,
    *,
    points: Sequence[Config],
    pictures: int,
    run_there: RunThere,
) -> tuple[Sequence[Slot], Timing | None]:
    """Return the slots in the wanted precision, by default all slots of this machine in the faster one."""
    if slots is None:
        slots, precision = devices.slots("auto", None), precision or "auto"
    if precision is None:
        return slots, None
    return settle_precision(study, slots, precision, points, pictures, run_there)


def _absolute(path: Path) -> str:
    return str(expanded(path).absolute())
