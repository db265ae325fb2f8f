"""The coordinator with many slots: how long a trial keeps it busy, and how busy that leaves the slots.

    python benchmarks/scale.py                                     # about half an hour
    python benchmarks/scale.py --slots 100 --finished 1000
    python benchmarks/scale.py --storage postgresql+psycopg://me@host/empty-database
    python benchmarks/scale.py --reread                            # reads the database at every look, as Optuna does

The real coordinator resumes a made-up study with its sampler, scheduler, database, notes and screen. Its workers train
nothing: a whole trial takes ten minutes by a clock that advances by the CPU time of the coordinator, and jumps to the
end of the next epoch when it only waits. A slot that waits for the coordinator is idle.
"""

import heapq
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna

from benchmarks.measuring import quiet_study, spread
from benchmarks.overhead import NAME, load, make_up, metrics
from data.prepare import find_pictures
from tests.stress.made_up_studies import PROFILE
from tests.stress.script import header, machine, row, run
from tuning import storage as database
from tuning.devices import Slot
from tuning.events import TrialEnded
from tuning.jobs import TrialJob, WorkerMessage
from tuning.trials import count_trials, read_trials

TRIAL_SECONDS = 600.0
"""Duration of a trial that is trained to its end."""


class ScheduledWorkers:
    """Workers by a clock that runs while the coordinator works, and jumps while it waits."""

    def __init__(self, slots: int) -> None:
        self.slots = dict.fromkeys(range(slots), Slot())
        self.trained = 0.0
        """Seconds of training in all slots together."""
        self.skipped = 0.0
        """Seconds by which the clock has jumped."""
        self._jobs: dict[int, tuple[TrialJob, int]] = {}
        self._due: list[tuple[float, int]] = []

    def clock(self) -> float:
        return time.process_time() + self.skipped

    def start(self, slot: int, job: TrialJob) -> None:
        self._jobs[slot] = (job, 0)
        self.proceed(slot)

    def proceed(self, slot: int) -> None:
        job, _ = self._jobs[slot]
        heapq.heappush(self._due, (self.clock() + TRIAL_SECONDS / job.assignment.epochs, slot))

    def stop(self, slot: int) -> None:
        self._jobs.pop(slot, None)

    def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
        due, slot = heapq.heappop(self._due)
        self.skipped += max(0.0, due - self.clock())
        job, epoch = self._jobs[slot]
        self._jobs[slot] = (job, epoch + 1)
        self.trained += TRIAL_SECONDS / job.assignment.epochs
        for name in ("last.pt", "best.pt"):
            (job.directory / name).write_bytes(b"weights")
        return [(slot, metrics(job, epoch))]

    def close(self) -> None:
        pass


def measure(results: Path, storage: str | None, slots: int, trials: int) -> tuple[list[float], float]:
    """Resume a study with many slots; return the coordinator's CPU seconds per trial, and the busy share of the slots.

    The first trials, with which the slots are filled, are left out.
    """
    workers, pictures = ScheduledWorkers(slots), find_pictures()
    stored = load(results) if storage is None else optuna.load_study(study_name=NAME, storage=storage)
    wanted = count_trials(read_trials(stored)) + 10 * slots + trials
    seconds, ended = list[float](), 0
    with quiet_study(
        pictures,
        results,
        trials=wanted,
        name=NAME,
        profile=PROFILE,
        scheduler="median",
        storage=storage,
        make_workers=lambda _: workers,
    ) as (_, events):
        since, clock, trained = time.process_time(), workers.clock(), 0.0
        for event in events:
            if isinstance(event, TrialEnded):
                ended += 1
                now = time.process_time()
                if ended > slots:
                    seconds.append(now - since)
                else:
                    clock, trained = workers.clock(), workers.trained
                since = now
            if len(seconds) == trials:
                break
    busy = (workers.trained - trained) / (slots * (workers.clock() - clock))
    return seconds, busy


def main(
    *,
    slots: tuple[int, ...] = (10, 100, 1000),
    finished: tuple[int, ...] = (1000, 10_000),
    trials: int = 100,
    storage: str | None = None,
    reread: bool = False,
) -> None:
    """Print the table.

    Parameters
    ----------
    slots
        Numbers of slots.
    finished
        Finished trials of each made-up study.
    trials
        Number of trials that are measured.
    storage
        URL of an empty database on a server; by default SQLite.
    reread
        Read all unfinished trials at every look at the study.
    """
    if reread:
        database.REREAD_SECONDS, database.REREAD_SHARE = 0.0, float("inf")
    pictures = find_pictures()
    print(machine())
    header("finished trials", "slots", "CPU s per trial", "slots busy, %", "memory, MB")
    for count in finished:
        with tempfile.TemporaryDirectory() as scratch:
            results = Path(scratch) / "results"
            make_up(results, count, pictures)
            if storage is not None:
                copy_study(load(results), storage)
            for number in slots:
                seconds, busy = measure(results, storage, number, trials)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                row(f"{count:,}", f"{number:,}", spread(seconds), f"{100 * busy:.1f}", f"{memory:.0f}")


def copy_study(study: optuna.Study, storage: str) -> None:
    """Copy a study into a server's database, in place of the one that is there."""
    there = optuna.storages.get_storage(storage)
    if NAME in optuna.get_all_study_names(there):
        optuna.delete_study(study_name=NAME, storage=there)
    optuna.copy_study(
        from_study_name=NAME,
        from_storage=study._storage,  # pyright: ignore[reportPrivateUsage]
        to_storage=there,
    )


if __name__ == "__main__":
    run(main)
