"""`python study.py`: runs a study, or resumes it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from commands.options import (
    DATA,
    EXTENT,
    PLACE,
    SEARCH,
    CacheOption,
    DeviceOption,
    Injected,
    LinksOption,
    NearDuplicatesOption,
    PartsOption,
    PrecisionOption,
    RayOption,
    ResultsOption,
    TestOption,
    WorkersOption,
    amount,
    argv,
    choice,
    count,
    flag,
    hardware,
    percentage,
    study_options,
)
from tuning import StudyError
from tuning.folder import RESULTS

if TYPE_CHECKING:
    from rich.console import Console

    from data.prepare import Pictures
    from search_space import Profile
    from tuning.coordinator import Plan

POINTS = 1000
"""Number of random networks of the search space with which the budgets are compared."""
SCALES = (1e3, 1e6, 1e9)
"""Multiples in which a budget may have been meant, smallest first."""


def run(
    *,
    data: Annotated[str, Parameter(group=DATA, metavar="PATH|NAME")] = "field-guide",
    test_data: TestOption = None,
    parts: PartsOption = None,
    follow_links: LinksOption = False,
    near_duplicates: NearDuplicatesOption = "group",
    pictures: Annotated[int | None, count(DATA)] = None,
    study: Annotated[str | None, Parameter(group=DATA, metavar="NAME")] = None,
    profile: Annotated[Literal["auto", "quick", "laptop", "gpu"], choice(DATA)] = "auto",
    trials: Annotated[int, count(EXTENT)] = 40,
    epochs: Annotated[int | None, count(EXTENT)] = None,
    timeout: Annotated[float | None, amount(EXTENT, "MINUTES")] = None,
    patience: Annotated[int | None, count(EXTENT)] = None,
    target: Annotated[float | None, percentage(EXTENT)] = None,
    max_params: Annotated[float | None, amount(SEARCH)] = None,
    max_flops: Annotated[float | None, amount(SEARCH)] = None,
    sampler: Annotated[Literal["tpe", "random"], choice(SEARCH)] = "tpe",
    scheduler: Annotated[Literal["promote", "median", "asha", "none"], choice(SEARCH)] = "promote",
    audit_pruner: Annotated[int | None, count(SEARCH)] = None,
    no_flips: Annotated[bool, flag(SEARCH)] = False,
    seed: Annotated[int, count(SEARCH, least=0)] = 0,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    ray: RayOption = None,
    storage: Annotated[str | None, Parameter(group=PLACE, metavar="URL")] = None,
    results: ResultsOption = RESULTS,
    cache: CacheOption = None,
    make_workers: Injected = None,
) -> None:
    """Run a study, or resume it: the default command.

    Parameters
    ----------
    data
        A folder with one folder of pictures per class; or "field-guide", nine genera of mushrooms drawn by the program;
        or "kaggle", photographs of the same genera, downloaded.
    pictures
        Use up to N pictures. By default all of them; of the field guide, 1,500 are drawn.
    study
        Name of the study, and of its folder under results/. By default the name of the data.
    profile
        What a trial may cost: "quick", 40 trials in ten minutes on two CPU cores; "laptop", in a few hours; "gpu", full
        resolution; "auto", gpu with CUDA and quick otherwise. The figures are under PROFILES in search_space.py.
    trials
        Total number of trials, over all restarts. A trial counts once it has been trained, to its last epoch or until
        it was pruned.
    epochs
        Epochs of a trial, unless it is pruned. By default a trial is shown as many pictures as the profile says, which
        takes 8 to 300 epochs.
    timeout
        Stop after this many minutes; run the same command again to resume. By default there is no limit.
    patience
        Start no new trials after N in a row without an improvement. By default there is no limit.
    target
        Start no new trials once one has reached this validation top-1, in percent.
    max_params
        Do not train networks with more parameters than N, such as 3e5; the sampler learns to avoid them. By default
        there is no limit.
    max_flops
        Do not train networks with more forward FLOPs per picture than N; a multiply-add counts as two. By default the
        profile's limit.
    sampler
        How configurations are chosen: "tpe" learns from the finished trials, "random" does not.
    scheduler
        Which trials end early: "promote" pauses each trial up to twice and resumes the better ones; "median" prunes
        those below the median of the others at the same epoch; "asha" prunes the worse ones by successive halving;
        "none" prunes nothing.
    audit_pruner
        At the end, train N of the pruned trials to their last epoch and report how often the pruner was wrong.
    no_flips
        Never mirror pictures in training: for digits, text and anything else whose mirror image has another meaning.
    seed
        Seed of the search and of every trial. With one worker on a CPU, a study repeats bit for bit.
    storage
        URL of the study's database, such as postgresql+psycopg://user@host/name. By default an SQLite file in the
        study's folder.
    """
    from commands import console as screen
    from commands.follow import follow, follow_runs
    from commands.results import print_audit
    from data.prepare import find_pictures
    from reporting.study_note import StudyNote
    from reporting.trial_note import TrialNotes
    from selection.pruner_audit import audit_pruner as train_pruned
    from tuning import scheduling
    from tuning.coordinator import Plan
    from tuning.events import Ending
    from tuning.session import open_session

    if audit_pruner is not None and scheduler == "none":
        raise StudyError("--audit-pruner has nothing to train with --scheduler none: omit one of the two")
    console = screen.make_console()
    track = screen.track(console)
    slots, at_work, run_there = hardware(console, ray, device, workers, cache)
    limits = _profile(profile, slots[0].device, epochs, flips=not no_flips)
    found = find_pictures(
        data,
        test_data=test_data,
        parts=parts,
        follow_links=follow_links,
        near_duplicates=near_duplicates,
        limit=pictures,
        cache_dir=cache,
        track=track,
    )
    screen.print_pictures(console, found)
    screen.print_look_alikes(console, found)
    if limits.flips:
        screen.ask_about_flips(console, found)
    limits = _fitted(console, limits, found)
    if storage is None:
        screen.warn_of_network_file_system(console, results)
    else:
        screen.warn_of_password(console, storage)
    plan = Plan(
        trials=trials,
        timeout=timeout * 60 if timeout else None,
        patience=patience,
        target=target / 100 if target else None,
        max_parameters=max_params,
        max_flops=max_flops,
    )
    _refuse_wrong_units(plan, limits, found)
    with open_session(
        found,
        plan=plan,
        name=study,
        profile=limits,
        sampler=sampler,
        scheduler=scheduler,
        seed=seed,
        slots=slots,
        precision=precision,
        results=results,
        storage=storage,
        cache_dir=cache,
        track=track,
        make_workers=make_workers or at_work,
        run_there=run_there,
        make_notes=TrialNotes,
        argv=argv(),
    ) as session:
        note = StudyNote(
            session.study, session.folder, catalog=found.catalog, split=found.split, profile=limits, trials=trials
        )
        wanted, horizon = session.searcher.wanted, limits.horizon
        rungs = scheduling.pauses(scheduler, horizon)
        shown = screen.Screen(
            console,
            session.study,
            trials=trials,
            slots=len(slots),
            expected=session.expected_seconds() if wanted else 0.0,
            epochs=session.trained_share * horizon if rungs else None,
            rungs=rungs,
        )
        if wanted:
            if ray is None:
                screen.print_machine(console, len(slots))
            first = scheduling.first_pruning(scheduler, horizon)
            screen.print_plan(
                console, session, wanted=wanted, rungs=rungs, first_pruning=first, left=shown.seconds_left
            )
            note.write_note()
        try:
            received = follow(session.searcher.stop, session.run(), shown, note.receive)
        finally:
            note.update()
        ending = session.searcher.ending
        screen.print_end(console, session, ending, argv(), study_options(session.name, results))
        if audit_pruner is not None and ending in (Ending.TRIALS, Ending.TARGET, Ending.PATIENCE):
            print_audit(console, train_pruned(session, audit_pruner, follow_runs(console, session)))
    if received is not None:
        raise SystemExit(128 + received)


def _profile(name: str, device: str, epochs: int | None, *, flips: bool) -> Profile:
    from search_space import PROFILES

    chosen = PROFILES[("gpu" if device.startswith("cuda") else "quick") if name == "auto" else name]
    return replace(chosen, epochs=epochs or chosen.epochs, flips=flips)


def _refuse_wrong_units(plan: Plan, profile: Profile, pictures: Pictures) -> None:
    """Raise StudyError if a target needs no training, or no network is within a budget: the unit must be another."""
    import numpy as np

    from reporting.words import percent
    from search_space import suggest
    from tuning.space import random_points

    classes = len(pictures.catalog.classes)
    counts = np.bincount(pictures.catalog.labels[pictures.split.validation])
    commonest = float(counts.max() / counts.sum())
    if plan.target is not None and plan.target <= commonest:
        meant = f" (did you mean {100 * 100 * plan.target:g}?)" if plan.target <= 0.01 else ""
        raise StudyError(
            f"--target {100 * plan.target:g} asks for {percent(plan.target)} validation top-1{meant}, and always "
            f"predicting the most common class reaches {percent(commonest)}: choose a higher one, or omit it"
        )
    costs = [one.cost for one in random_points(partial(suggest, profile=profile, classes=classes), POINTS)]
    for option, noun, budget, least in (
        ("--max-params", "parameters", plan.max_parameters, min(cost.parameters for cost in costs)),
        ("--max-flops", "FLOPs per picture", plan.max_flops, min(cost.flops for cost in costs)),
    ):
        if budget is not None and budget < least:
            meant = next((f" (did you mean {budget * scale:g}?)" for scale in SCALES if budget * scale >= least), "")
            raise StudyError(
                f"{option} {budget:g} is below every network of the search space{meant}: choose at least {least:,}, "
                f"the {noun} of the smallest of {POINTS:,} random ones"
            )


def _fitted(console: Console, profile: Profile, pictures: Pictures) -> Profile:
    """Return the profile with the image sizes and epochs that suit the data set, and print a change of sizes."""
    short_side = pictures.catalog.median_short_side
    fitted = profile.fitted(short_side, len(pictures.split.train))
    if fitted.sizes != profile.sizes:
        console.print(
            f"Half of the pictures have a short side of {short_side} pixels or less: image sizes are "
            f"{', '.join(map(str, fitted.sizes))} instead of {', '.join(map(str, profile.sizes))}.",
            highlight=False,
        )
    return fitted
