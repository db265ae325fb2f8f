"""`python study.py retrain`: trains the best trials again, then the winner, and tests it once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from commands.options import (
    RETRAINING,
    CacheOption,
    DeviceOption,
    Injected,
    MovedDataOption,
    MovedPartsOption,
    MovedTestOption,
    PrecisionOption,
    RayOption,
    ResultsOption,
    StorageOption,
    StudyOption,
    WorkersOption,
    choice,
    count,
    find_study,
    flag,
    hardware,
    several,
    study_options,
)
from tuning import StudyError
from tuning.folder import RESULTS


def retrain(
    *,
    study: StudyOption = None,
    data: MovedDataOption = None,
    test_data: MovedTestOption = None,
    parts: MovedPartsOption = None,
    trial: Annotated[int | None, count(RETRAINING, least=0)] = None,
    finalists: Annotated[int | None, count(RETRAINING)] = None,
    seeds: Annotated[int, count(RETRAINING)] = 3,
    longer: Annotated[int, count(RETRAINING)] = 8,
    baseline: Annotated[list[Literal["recipes", "pretrained"]] | None, several(RETRAINING)] = None,
    pretrained: Annotated[str | None, choice(RETRAINING)] = None,
    weights: Annotated[Path | None, Parameter(group=RETRAINING, metavar="FILE")] = None,
    retest: Annotated[bool, flag(RETRAINING)] = False,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    ray: RayOption = None,
    storage: StorageOption = None,
    results: ResultsOption = RESULTS,
    cache: CacheOption = None,
    make_workers: Injected = None,
) -> None:
    """Train the best trials again with several seeds, then the winner on all but the test set, and test it once.

    After an interruption, run the same command again to resume.

    Parameters
    ----------
    trial
        Retrain this trial instead of the best ones, without trying any other configuration. It is first repeated
        exactly as it was trained.
    finalists
        Number of best trials to train again. By default 3.
    seeds
        Number of seeds for each finalist and for the final runs. The best mean validation top-1 wins.
    longer
        Also train the winner twice as long as in the study, and double that again as long as half a point is gained or
        the loss falls by 1 %, up to N times the length in the study. Stronger augmentation, half the learning rate, and
        the best single guess are tried with the first seed, and only the best is trained with all of them. The best
        mean wins. With 1, the winner is trained only as long as in the study.
    baseline
        What to compare the winner with: "recipes", the baselines that every study starts with, trained for as long
        as the winner, and the hand-tuned recipe once more without its warm-up; "pretrained", a logistic regression on
        the features of a pretrained network; or both. Without a name, the recipes.
    pretrained
        The pretrained network: one of torchvision's classifiers, by default mobilenet_v3_small.
    weights
        State dict of the pretrained network. By default torchvision downloads its weights.
    retest
        Use the test set even if other networks have been tested on it, which makes the result optimistic.
    """
    from rich.text import Text

    from commands import console as screen
    from commands import results as shown
    from commands.follow import follow_runs, resumable
    from reporting import spotlights
    from reporting.doubts import write_gallery
    from reporting.study_note import show_finalists
    from reporting.trial_note import TrialNotes
    from selection import doubts
    from selection import finalists as best
    from selection.fixed_runs import train
    from selection.pretrained import DEFAULT, load
    from selection.retraining import compare, retrain_winner
    from selection.test_set_uses import TestSet, uses_by_others
    from tuning.trials import METRIC, read_trials

    comparing = "pretrained" in (baseline or ())
    for option, value in (("--pretrained", pretrained), ("--weights", weights)):
        if value is not None and not comparing:
            raise StudyError(f"{option} {value} has no effect without --baseline pretrained: add that, or omit it")
    if None not in (trial, finalists):
        raise StudyError(f"--finalists {finalists} has no effect with --trial {trial}: omit one of them")
    console = screen.make_console()
    slots, at_work, run_there = hardware(console, ray, device, workers, cache)
    found = find_study(console, results, study, storage)
    with found.locked():
        if trial is None:
            chosen, guess = best.candidates(found.study, finalists or best.FINALISTS), best.best_guess(found.study)
        else:
            chosen, guess = [best.candidate(found.study, trial)], []
        recipes = baseline is not None and (not baseline or "recipes" in baseline)
        baselines: list[best.Candidate] = []
        if recipes:
            baselines = best.baseline_candidates(found.study)
            for one in read_trials(found.study):
                if one.baseline and one.reason and not one.epochs:
                    console.print(Text(f"Not compared with the {one.baseline}: {one.reason}."), soft_wrap=True)
        other = load(pretrained or DEFAULT, weights) if comparing else None
        session = found.reopen(
            {one.config.image_size for one in (*chosen, *guess, *baselines)},
            data=data,
            test_data=test_data,
            parts=parts,
            slots=slots,
            precision=precision,
            cache_dir=cache,
            track=screen.track(console),
            make_workers=make_workers or at_work,
            run_there=run_there,
            make_notes=TrialNotes,
        )
        screen.print_pictures(console, session.pictures, classes=False)
        if ray is None:
            screen.print_machine(console, len(slots))
        follow = follow_runs(console, session)
        if trial is not None:
            original = read_trials(found.study)[trial]
            (again,) = train(session, best.KIND, METRIC, [best.replay(chosen[0], original)], follow)
            shown.print_replay(console, original, again)
        standings = best.train_finalists(
            session, chosen, seeds, follow, longer=longer, alternatives=trial is None, baselines=baselines
        )
        show_finalists(session.study, session.folder)
        shown.print_standings(console, standings)
        found_doubts = doubts.find(session, standings)
        doubts.write(found_doubts, session)
        write_gallery(found_doubts, session, standings[0].candidate.config.image_size)
        shown.print_doubts(console, found_doubts, session.folder)
        winner = retrain_winner(session, standings, retest=retest, follow=follow)
        spotlights.write(session, winner)
        used = session.folder.parent, TestSet.of(session.pictures)
        if winner.results is None:
            shown.print_not_tested(console, uses_by_others(*used, winner.networks))
        else:
            shown.print_tested(console, winner, winner.results, session.data.classes)
            if other is not None:
                with resumable(console):
                    winner = compare(session, winner, other, retest=retest, track=screen.track(console))
                if winner.pretrained is not None:
                    shown.print_compared(console, winner.pretrained)
                else:
                    uses = [use for use in uses_by_others(*used, other.key) if not use.of(winner.networks)]
                    shown.print_not_tested(console, uses, other.name)
        shown.print_next(console, session.folder, study_options(session.name, results))
