"""Where a trial's time goes: forward, backward, optimizer, augmentation, evaluation, checkpoints, and waiting.

    python benchmarks/where_time_goes.py                       # a few minutes: 6 trials of the quick profile, whole
    python benchmarks/where_time_goes.py --trials 2 --epochs 2 --workers 1

A real study runs with its real coordinator, notes, database and workers; the workers alone carry a clock around the
functions that they call. Shares are of the workers' wall clock from each one's first trial to its last; CPU seconds
stand beside them, because they say the same on a busy machine. Copied into the checkout of another commit, this script
and measuring.py measure that one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tuning import workers

CLOCKS = "MUSHROOM_CLOCKS"
"""The environment variable that tells workers where to leave their clocks."""

SECTIONS = {
    "forward": "forward",
    "loss": "loss and hits",
    "backward": "backward",
    "check": "finite check",
    "optimizer": "optimizer",
    "draw": "drawing of the augmentation",
    "gather": "gather",
    "normalise": "normalise",
    "augment": "augmentation",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "set-up": "set-up of the trial",
    "rest": "the rest of the loop",
    "asked": "waiting for the word after an epoch",
    "idle": "waiting for the next trial",
}


def _serve_with_clock(connection: Any) -> None:
    """A worker process whose functions carry a clock; its seconds are written whenever a trial ends."""
    from measuring import Clock
    from torch import Tensor
    from torch.optim import optimizer  # pyright: ignore[reportAttributeAccessIssue]

    from data import batches
    from model import checkpoint, training
    from model.network import MushroomCNN
    from tuning import trainer

    clock = Clock("idle", whole=("evaluation", "checkpoint", "set-up"))
    for owner, name, section in (
        (trainer, "open_part", "set-up"),
        (trainer, "MushroomCNN", "set-up"),
        (trainer, "make_optimizer", "set-up"),
        (MushroomCNN, "forward", "forward"),
        (training.functional, "cross_entropy", "loss"),
        (Tensor, "backward", "backward"),
        (training, "get_total_norm", "check"),
        (training, "_floats", "check"),
        (optimizer.Optimizer, "zero_grad", "optimizer"),
        (batches, "draw", "draw"),
        (batches.TrainingBatches, "order", "draw"),
        (batches.DevicePictures, "__getitem__", "gather"),
        (batches, "normalise", "normalise"),
        (batches, "augment", "augment"),
        (training, "evaluate", "evaluation"),
        (checkpoint, "save", "checkpoint"),
        (workers._PipeLink, "answer", "asked"),  # pyright: ignore[reportPrivateUsage]
    ):
        clock.time(owner, name, section)
    optimizer.register_optimizer_step_pre_hook(lambda *_: clock.enter("optimizer"))
    optimizer.register_optimizer_step_post_hook(lambda *_: clock.leave())
    run, begun = trainer.run, False
    path = Path(os.environ[CLOCKS]) / f"{os.getpid()}.json"

    def run_and_tell(*args: Any) -> bool:
        nonlocal begun
        if not begun:  # importing torch, and the wait for the first trial, are the process's and no trial's
            clock.wall.clear()
            clock.cpu.clear()
            clock.leave()
            clock.__init__("idle", whole=("evaluation", "checkpoint", "set-up"))
            begun = True
        clock.enter("rest")
        usable = run(*args)
        clock.leave()
        path.write_text(json.dumps({"wall": clock.wall, "cpu": clock.cpu, "calls": clock.calls}))
        return usable

    trainer.run = run_and_tell
    _serve(connection)


_serve = workers._serve  # pyright: ignore[reportPrivateUsage]


def measure(trials: int, epochs: int | None, count: int | None) -> None:
    """Runs the study and prints the table."""
    import optuna
    from measuring import config_of, drawn_pictures, machine, points

    from model.training import EpochMetrics
    from reporting.trial_note import TrialNotes
    from search_space import PROFILES, suggest
    from tuning import sampling, scheduling, storage
    from tuning.coordinator import Coordinator, Plan, TrialAdvanced, TrialEnded, search
    from tuning.devices import slots
    from tuning.folder import sqlite_url

    profile = PROFILES["quick"]
    profile = replace(profile, epochs=epochs or profile.epochs)
    places = slots("cpu", count)
    _, _, data = drawn_pictures(profile.sizes)
    chosen = points(profile, trials, classes=len(data.classes))
    workers._serve = _serve_with_clock  # pyright: ignore[reportPrivateUsage]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[CLOCKS] = scratch
        folder = Path(scratch) / "study"
        folder.mkdir()
        study = storage.open_study(
            sqlite_url(folder),
            "benchmark",
            sampler=sampling.SAMPLERS["tpe"](0),
            pruner=scheduling.PRUNERS["none"](profile.epochs),
            identity={},
            first_trials={str(index): params for index, params in enumerate(chosen)},
        )
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        coordinator = Coordinator(
            study,
            workers=workers.LocalWorkers(places),
            scheduler=scheduling.PrunerScheduler(),
            assign=search(partial(suggest, profile=profile, classes=len(data.classes)), 0),
            plan=Plan(trials=trials, max_flops=profile.max_flops),
            data=data,
            folder=folder,
            describe=TrialNotes(folder, data),
        )
        begun, busy, shown = time.perf_counter(), time.process_time(), 0
        training = 0.0
        per_epoch = {index: config_of(params, profile).views for index, params in enumerate(chosen)}
        from data.cache import open_part

        pictures = len(open_part(data, profile.sizes[0], "train").indices)
        for happening in coordinator.run():
            if isinstance(happening, TrialAdvanced) and isinstance(happening.progress, EpochMetrics):
                shown += pictures * per_epoch[happening.number]
                training += happening.progress.seconds
            elif isinstance(happening, TrialEnded) and happening.outcome != "complete":
                print(f"trial {happening.number}: {happening.reason}", file=sys.stderr)
        seconds, coordinating = time.perf_counter() - begun, time.process_time() - busy
        found = [json.loads(path.read_text()) for path in Path(scratch).glob("*.json")]
    wall, cpu, calls = (sum((Counter(one[kind]) for one in found), Counter()) for kind in ("wall", "cpu", "calls"))
    whole, busy = sum(wall.values()), sum(cpu.values())
    print(machine())
    print(
        f"{trials} trials of {profile.epochs} epochs, {len(places)} at once in {places[0].precision}: {seconds:.1f} s, "
        f"of which the workers spent {training / len(places):.1f} s each in epochs; "
        f"the coordinator's CPU {coordinating / trials:.2f} s a trial; {shown:,} pictures trained\n"
    )
    print("| section | share of the wall clock | share of the CPU | CPU ms per picture | calls |")
    print("|---|---|---|---|---|")
    for key, name in SECTIONS.items():
        print(
            f"| {name} | {wall[key] / whole:.1%} | {cpu[key] / busy:.1%} | {1000 * cpu[key] / shown:.4f} | "
            f"{calls[key]:,} |"
        )
    print(f"| all | 100 % | 100 % | {1000 * busy / shown:.4f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, help="of each; by default the quick profile's")
    parser.add_argument("--workers", type=int, dest="count", help="by default one per core")
    measure(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
