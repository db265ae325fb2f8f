"""The screen: what a person reads in a terminal of 80 columns and in a log, with names that are meant to break it."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from pictures import (
    altered,
    class_folders,
    flawed_folder,
    large_catalog,
    made_up_catalog,
    made_up_picture,
    picture,
)
from PIL import Image, ImageEnhance
from rich.console import Console
from studies import ThreadWorkers

from commands import console as screen
from data.prepare import Pictures, find_pictures
from data.split import split
from model.training import EpochMetrics
from search_space import PROFILES, Config, baselines, suggest
from tuning.coordinator import Plan
from tuning.devices import Slot
from tuning.events import Ending, TrialAdvanced, TrialEnded, TrialPaused, TrialStarted
from tuning.jobs import Assignment, Progress
from tuning.session import SearchSession, open_session
from tuning.trials import METRIC, Outcome, write_paused


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, record=True)


def log(width: int = 160) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width, highlight=False, record=True)


def lines(console: Console) -> list[str]:
    return console.export_text(clear=False).splitlines()


def config() -> Config:
    profile = replace(PROFILES["quick"], epochs=10)
    point = baselines(profile)["original recipe"]
    return suggest(optuna.trial.FixedTrial(point), profile, 3)  # type: ignore[arg-type]


def study(values: list[float | None], name: str = "mushrooms") -> optuna.Study:
    """A study of finished trials, as the coordinator leaves them; the first two are baselines, None is pruned."""
    made = optuna.create_study(study_name=name, direction="maximize")
    for number, value in enumerate(values):
        attributes: dict[str, Any] = {
            "outcome": str(Outcome.PRUNED if value is None else Outcome.COMPLETE),
            "config": config().to_dict(),
            "flops": 123_456_789,
            "best_top1": value or 0.0,
            "best_top3": 0.9,
            "best_epoch": 4,
            "seconds": 1.0,
        }
        if number < 2:
            attributes["baseline"] = ["original recipe", "hand-tuned recipe"][number]
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        made.add_trial(optuna.trial.create_trial(state=state, value=value, user_attrs=attributes))
    return made


def started(
    slot: int, number: int, *, attempt: int = 1, name: str | None = None, micro_batch: int | None = None
) -> TrialStarted:
    point = config()
    work = Assignment(config=point, seed=0, epochs=point.training.epochs, key=point.digest, name=name)
    return TrialStarted(slot=slot, number=number, attempt=attempt, assignment=work, micro_batch=micro_batch)


def epoch(number: int, top1: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=number,
        train_loss=1.0,
        train_top1=0.5,
        validation_loss=1.0,
        top1=top1,
        top3=0.9,
        confusion=((1, 0), (0, 1)),
        lr=0.1,
        seconds=2.0,
        peak_memory=1000,
    )


def ended(number: int, outcome: Outcome | None, reason: str, value: float | None, slot: int | None = 0) -> TrialEnded:
    return TrialEnded(number=number, outcome=outcome, reason=reason, value=value, slot=slot)


def test_a_log_has_one_line_per_finished_trial_with_the_counts() -> None:
    console = log()
    with screen.Screen(console, study([]), trials=12, slots=2, expected=60.0) as shown:
        shown.show(started(0, 0, name="original recipe"))
        shown.show(TrialAdvanced(slot=0, number=0, progress=Progress(share=0.5)))
        shown.show(TrialAdvanced(slot=0, number=0, progress=epoch(0, 0.4)))
        shown.show(None)
        shown.show(ended(0, Outcome.COMPLETE, "trained to its last epoch", 0.5))
        shown.show(started(0, 1))
        shown.show(ended(1, Outcome.PRUNED, "pruned after epoch 4", 0.25))
        shown.show(ended(2, Outcome.INFEASIBLE, "9 flops are over the budget of 8", None, slot=None))
        shown.show(ended(3, Outcome.DUPLICATE, "duplicate of trial 1", None, slot=None))
        shown.show(started(0, 10, attempt=2))
        shown.show(started(0, 10, attempt=3, micro_batch=16))
        shown.show(ended(10, Outcome.DIVERGED, "loss is nan in epoch 1", None))
        shown.show(ended(11, Outcome.FAILED, "worker died: killed by SIGKILL", None))
        shown.show(ended(12, None, "ended from outside (deleted)", None))
    printed = lines(console)
    assert [line.partition(" | ")[0] for line in printed] == [
        "trial  0   50.00 %  original recipe, best so far",
        "trial  1   25.00 %  pruned after epoch 4",
        "trial  2         -  infeasible: 9 flops are over the budget of 8",
        "trial  3         -  duplicate: duplicate of trial 1",
        "trial 10         -  resumed from its last checkpoint",
        "trial 10         -  resumed from its last checkpoint, in micro-batches of 16 as memory was short",
        "trial 10         -  diverged: loss is nan in epoch 1",
        "trial 11         -  failed: worker died: killed by SIGKILL",
        "trial 12         -  ended from outside (deleted)",
    ]
    assert "1 of 12 trials, 0 pruned, 0 failed, best 50.00 % (trial 0), about " in printed[0]
    assert "3 of 12 trials, 1 pruned, 1 diverged, 1 infeasible, 1 duplicate, 1 failed, best 50.00 %" in printed[-1]


def test_a_resumed_study_counts_the_trials_that_it_has() -> None:
    console = log()
    with screen.Screen(console, study([0.5, 0.7, None]), trials=4, slots=1, expected=60.0) as shown:
        shown.show(started(0, 3))
        shown.show(ended(3, Outcome.COMPLETE, "trained to its last epoch", 0.6))
    assert lines(console) == ["trial 3   60.00 % | 4 of 4 trials, 1 pruned, 0 failed, best 70.00 % (trial 1), done"]


def test_a_terminal_shows_a_row_per_worker_and_nothing_wider_than_itself() -> None:
    with screen.Screen(terminal(), study([0.5]), trials=1000, slots=3, expected=60.0) as shown:
        shown.show(started(0, 998, name="hand-tuned recipe"))
        shown.show(started(1, 999))
        shown.show(TrialAdvanced(slot=0, number=998, progress=epoch(8, 0.5)))
        shown.show(ended(997, Outcome.PRUNED, "pruned after epoch 4", 0.25, slot=None))
    console = terminal()
    console.print(shown._render())
    printed = lines(console)
    assert printed[0].rstrip() == "mushrooms: 2 of 1000 trials, 1 pruned, 0 failed, best 50.00 % (trial 0)"
    assert "elapsed, about" in printed[-1]
    workers = [line.split() for line in printed if line.startswith("worker")][-3:]
    assert workers[0][:4] == ["worker", "0", "trial", "998"]
    assert "10/10" in workers[0]
    assert workers[1][4] == "starting"
    assert workers[2] == ["worker", "2"]
    assert all(len(line.rstrip()) <= 80 for line in printed)


def test_the_time_left_follows_the_forecast_until_enough_trials_have_ended() -> None:
    shown = screen.Screen(log(), study([]), trials=10, slots=2, expected=60.0)
    assert shown.seconds_left == 300.0
    shown.show(started(0, 0))
    shown.show(TrialAdvanced(slot=0, number=0, progress=epoch(4, 0.5)))
    assert shown.seconds_left == 285.0  # half of one of ten trials is done
    for number in range(4):
        shown.show(ended(number, Outcome.COMPLETE, "", 0.5, slot=None))
    assert shown.seconds_left < 60.0


def test_a_paused_trial_that_is_resumed_is_not_said_to_have_been_interrupted() -> None:
    """Nearly every trial is paused; also if that was in an earlier run."""
    console, earlier = log(), study([0.5])
    write_paused(earlier.ask())
    with screen.Screen(console, earlier, trials=3, slots=1, expected=60.0) as shown:
        shown.show(started(0, 1, attempt=2))
        shown.show(TrialPaused(slot=0, number=1))
        shown.show(started(0, 1, attempt=3))
        assert not any("resumed" in line for line in lines(console))
        shown.show(started(0, 1, attempt=4))
        shown.show(ended(1, Outcome.PRUNED, "pruned after epoch 4", 0.25, slot=0))
    assert ["resumed" in line for line in lines(console)] == [False, True, False]


def test_a_pause_is_shown_when_it_happens_and_not_again_when_the_trial_is_retired() -> None:
    """All trials but the promoted ones end together at the end: a log would have been empty until then."""
    console = log()
    with screen.Screen(console, study([0.5]), trials=3, slots=2, expected=60.0, epochs=2.5) as shown:
        shown.show(started(0, 1, name="best single guess"))
        shown.show(TrialAdvanced(slot=0, number=1, progress=epoch(0, 0.25)))
        shown.show(TrialAdvanced(slot=0, number=1, progress=epoch(1, 0.2)))
        shown.show(started(1, 2))
        shown.show(TrialPaused(slot=0, number=1))
        (line,) = lines(console)
        assert line.startswith("trial 1   25.00 %  best single guess, paused after epoch 2 | 3 of 3 trials begun, 1 pa")
        shown.show(ended(2, Outcome.DIVERGED, "loss is nan in epoch 1", None, slot=1))
        shown.show(ended(1, Outcome.PRUNED, "pruned after epoch 2: not resumed", 0.25, slot=None))
        assert [line.split()[1] for line in lines(console)] == ["1", "2"]
        assert "3 of 3 trials, 1 pruned, 1 diverged" in shown._headline() and shown._time_left() == "done"


def test_before_any_trial_is_complete_the_highest_paused_one_is_shown() -> None:
    earlier = study([])
    for value in (0.25, 0.5, 0.125):
        trial = earlier.ask()
        trial.report(value, 0)
        write_paused(trial)
    shown = screen.Screen(log(), earlier, trials=9, slots=1, expected=60.0, epochs=2.5)
    assert "3 of 9 trials begun, 3 paused, " in shown._headline() and "50.00 % (trial 1)" in shown._headline()


def test_a_paused_trial_frees_its_row() -> None:
    shown = screen.Screen(log(), study([]), trials=10, slots=1, expected=60.0)
    shown.show(started(0, 0))
    shown.show(TrialPaused(slot=0, number=0))
    assert shown.seconds_left == 600.0


def test_with_promotion_the_time_left_follows_the_epochs_and_not_the_trials_that_have_ended() -> None:
    """The first trial to end once made a study of 24 s announce 20 min: all others end with the last one."""
    shown = screen.Screen(log(), study([]), trials=10, slots=1, expected=60.0, epochs=2.5)
    for number in range(3):
        shown.show(started(0, number))
        for at in range(1 + 4 * (number == 2)):
            shown.show(TrialAdvanced(slot=0, number=number, progress=epoch(at, 0.5)))
        if number < 2:
            shown.show(TrialPaused(slot=0, number=number))
    shown._began -= 140.0
    assert shown.seconds_left == pytest.approx(140.0 / 7 * (25 - 7), rel=0.01)
    shown.show(ended(2, Outcome.COMPLETE, "", 0.5))
    shown.show(started(0, 0, attempt=2))
    shown.show(TrialAdvanced(slot=0, number=0, progress=epoch(0, 0.5)))
    assert shown.seconds_left == pytest.approx(140.0 / 7 * (25 - 7), rel=0.01), "an epoch is sent again after a pause"


def test_the_time_left_is_at_least_that_of_the_running_trials() -> None:
    """More trials may be promoted than expected: the last one once had a second left for a minute."""
    shown = screen.Screen(log(), study([]), trials=1, slots=1, expected=60.0, epochs=2.0, rungs=(2,))
    shown.show(started(0, 0))
    for at in range(2):
        shown.show(TrialAdvanced(slot=0, number=0, progress=replace(epoch(at, 0.5), seconds=10.0)))
    assert shown.seconds_left == 0.0
    shown.show(TrialPaused(slot=0, number=0))
    shown.show(started(0, 0, attempt=2))
    last = started(0, 0).assignment.epochs
    shown.show(TrialAdvanced(slot=0, number=0, progress=replace(epoch(2, 0.5), seconds=10.0)))
    assert shown.seconds_left == 10.0 * (last - 3)


def test_a_resumed_study_knows_the_epochs_of_its_paused_trials() -> None:
    earlier = study([])
    for _ in range(4):
        trial = earlier.ask()
        trial.report(0.5, 0)
        write_paused(trial)
    shown = screen.Screen(log(), earlier, trials=4, slots=2, expected=60.0, epochs=2.0)
    assert shown.seconds_left == 60.0


def test_a_stop_is_announced_once_with_the_time_that_it_takes() -> None:
    console = log()
    shown = screen.Screen(console, study([]), trials=10, slots=1, expected=200.0)
    shown.show(started(0, 0))
    shown.show(TrialAdvanced(slot=0, number=0, progress=Progress(share=0.5)))
    shown.print_stopping()
    shown.print_stopping()
    (line,) = lines(console)
    assert line.startswith("Stopping when the running epochs end, in about 10 s; ")
    assert "Ctrl-C" in line


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_best_trials_fit_the_terminal_on_a_line_each(width: int) -> None:
    console = terminal(width)
    screen.print_best(console, study([1.0, 0.1, *[0.2 + number / 100 for number in range(20)]]))
    printed = [line.rstrip() for line in lines(console)]
    assert printed[0].split()[:2] == ["trial", "top-1"]
    assert ("top-3" in printed[0]) == ("decay" in printed[0]) == (width >= 100)
    assert all(len(line) <= width for line in printed)
    assert [int(line.split()[0]) for line in printed[1:-1]] == [
        0,
        21,
        20,
        19,
        18,
        1,
    ]  # the best five, then the other baseline
    assert printed[-1] == "Baselines: trial 0 (original recipe), trial 1 (hand-tuned recipe)."
    assert printed[1].split()[-1] == "123"


def test_without_a_complete_trial_the_furthest_one_is_named() -> None:
    console, waiting = log(), study([None, None])
    screen.print_best(console, waiting)
    assert len(lines(console)) == 1 and "last epoch" in lines(console)[0]
    for values in ([0.5], [0.25, 0.125]):
        trial = waiting.ask()
        for step, value in enumerate(values):
            trial.report(value, step)
        write_paused(trial)
    screen.print_best(console, waiting)
    assert "trial 3, 25.00 % after epoch 2" in lines(console)[-1]


TWO_GPUS = [Slot(device=f"cuda:{index}", threads=8, precision="bfloat16") for index in range(2)]


@pytest.fixture
def open_study(tmp_path: Path) -> Iterator[Callable[[str], SearchSession]]:
    """A function that starts a study of this name, of 40 trials of 10 epochs, on two GPUs that are never used."""
    folder = class_folders(tmp_path / "pictures", classes=2)
    found = find_pictures(str(folder), cache_dir=tmp_path)
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(
            open_session(
                found,
                plan=Plan(trials=40),
                name=name,
                profile=replace(PROFILES["quick"], epochs=10),
                slots=TWO_GPUS,
                results=tmp_path / "my results",
                cache_dir=tmp_path,
                make_workers=ThreadWorkers,
            )
        )


def test_the_end_says_where_the_results_are_and_what_comes_next(
    open_study: Callable[[str], SearchSession],
) -> None:
    session, console = open_study("m"), log()
    ended = replace(session, study=study([0.5, 0.7, None]))
    options = "--study 'my mushrooms'"
    screen.print_end(console, ended, Ending.TRIALS, ["--trials", "3", "--seed", "1"], options)
    assert lines(console)[-8:] == [
        "3 trials: all trials are done.",
        "Trained:  2 to the last epoch",
        "Continue: python study.py --seed 1 --trials 6",
        "Browse:   python study.py dashboard --study 'my mushrooms'",
        "Report:   python study.py report --study 'my mushrooms'",
        "Retrain:  python study.py retrain --study 'my mushrooms'",
        f"Trials:   {session.folder / 'trials.csv'}",
        f"Pictures: {session.folder / 'data_report.csv'}",
    ]


def test_an_interrupted_study_names_the_command_that_resumes_it(open_study: Callable[[str], SearchSession]) -> None:
    console, half = log(), study([0.5])
    waiting = half.ask()
    waiting.report(0.3, 0)
    write_paused(waiting)
    screen.print_end(console, replace(open_study("r"), study=half), Ending.STOPPED, ["--trials", "9"], "--study r")
    first, far, second = lines(console)[-8:-5]
    assert first.startswith("1 trial: stopped. ")
    assert " 1 unfinished trial " in first
    assert far == "Trained:  1 to the last epoch and 1 to epoch 1"
    assert second == "Resume:   python study.py --trials 9"


@pytest.mark.parametrize(("ending", "option"), [(Ending.PATIENCE, "--patience"), (Ending.TARGET, "--target")])
def test_a_study_that_reached_its_patience_or_target_names_the_option(
    ending: Ending, option: str, open_study: Callable[[str], SearchSession]
) -> None:
    console, plan = log(), Plan(trials=40, target=0.4, patience=7)
    session = replace(open_study("r"), study=study([0.5]), plan=plan)
    screen.print_end(console, session, ending, ["--trials", "9"], "--study r")
    assert re.match(rf"Continue: .* larger {option},", lines(console)[-6])
    assert "target 40.00 %, best 50.00 % in trial 0" in lines(console)[-8]
    assert ("7 trials without an improvement" in lines(console)[-8]) == (ending is Ending.PATIENCE)


def test_limits_are_named_with_their_units_when_the_study_starts_and_ends(
    open_study: Callable[[str], SearchSession],
) -> None:
    """--timeout 3600 is sixty hours, which whoever meant seconds sees before the first trial."""
    plan = Plan(trials=40, timeout=3600 * 60.0, target=0.9)
    session = replace(open_study("r"), study=study([0.5, 0.6]), plan=plan)
    assert "60.0 h or at 90.00 % validation top-1" in plan_text(log(), session, None)
    console = log()
    screen.print_end(console, session, Ending.TIMEOUT, [], "--study r")
    assert "after 60.0 h, target 90.00 %, best 60.00 % in trial 1" in lines(console)[-8]


def plan_text(console: Console, session: SearchSession, first_pruning: int | None, rungs: tuple[int, ...] = ()) -> str:
    screen.print_plan(console, session, wanted=30, rungs=rungs, first_pruning=first_pruning, left=900.0)
    return " ".join(" ".join(lines(console)).split())


def test_the_plan_says_how_much_is_left_how_long_it_takes_and_when_it_prunes(
    open_study: Callable[[str], SearchSession],
) -> None:
    session = open_study("mushrooms")
    assert plan_text(log(), session, 4) == (
        "Study 'mushrooms': 30 of 40 trials left, 10 epochs each, pruned after epoch 4 at the earliest; "
        "2 at once on cuda in bfloat16: about 15 min."
    )
    assert "10 epochs each, never pruned;" in plan_text(log(), session, None)
    assert "10 epochs each, paused after epochs 1 and 4;" in plan_text(log(), session, 1, (1, 4))
    write_paused(session.study.ask())
    assert "30 of 40 trials left (1 paused), " in plan_text(log(), session, 1, (1, 4))


def test_lines_break_between_words(open_study: Callable[[str], SearchSession]) -> None:
    """A terminal of 100 columns cut "2 at once on cpu" after "o"."""
    console = terminal(70)
    session = open_study("mushrooms")
    whole = plan_text(log(), session, 4)
    plan_text(console, session, 4)
    assert all(len(line.rstrip()) <= 70 for line in lines(console))
    assert [word for line in lines(console) for word in line.split()] == whole.split()
    assert len(lines(console)) > 1


ODD = ("[red]x", "[bold", "a\nb", "Pilze äöü 蘑菇", "\x1b[31mred", "[link=x]y")


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    class_folders(tmp_path / "clean", classes=1)
    for label, name in enumerate(ODD):
        folder = tmp_path / "odd" / name
        folder.mkdir(parents=True)
        for seed in range(10):
            picture(seed, label=label).save(folder / f"{seed}.png")
        (folder / "[bold]broken.jpg").write_bytes(b"")
    return tmp_path / "odd"


def test_names_are_shown_as_text_whatever_they_contain(
    odd_folder: Path, tmp_path: Path, open_study: Callable[[str], SearchSession]
) -> None:
    found = find_pictures(str(odd_folder), cache_dir=tmp_path)
    console = terminal(120)
    screen.print_pictures(console, found)
    screen.print_left_out(console, found.catalog, None)
    text = "\n".join(lines(console))
    for name in ("[red]x ", "[bold ", "a\\nb ", "Pilze äöü 蘑菇 ", "\\x1b[31mred ", "[link=x]y "):
        assert f"\n{name}" in text
    assert "unreadable: [red]x/[bold]broken.jpg (" in text
    assert "Study '[red]x': 30 of 40" in plan_text(log(), open_study("[red]x"), 4)


def test_the_table_of_classes_counts_each_part_and_what_is_left_out(tmp_path: Path) -> None:
    folder = flawed_folder(tmp_path / "flawed")
    found = find_pictures(str(folder), cache_dir=tmp_path)
    kept = len(found.catalog.kept)
    console = terminal()
    screen.print_pictures(console, found)
    assert lines(console)[0].rstrip() == f"flawed: {kept} pictures of 3 classes"
    rows = {line.split()[0]: line.split()[1:] for line in lines(console)[1:]}
    assert rows["class"] == ["train", "validation", "test", "left", "out"]
    assert sum(int(cell) for name in ("Agaricus", "Amanita", "Boletus") for cell in rows[name][:3]) == kept
    assert rows["all"] == [
        *(str(len(places)) for _, places in found.split.named()),
        str(len(found.catalog.pictures) - kept),
    ]
    assert rows["Empty"] == ["0"]
    left_out = " ".join(" ".join(lines(console)).partition("Left out: ")[2].split())
    assert ", 1 too small, 1 duplicate, 2 conflict, 4 refused (" in left_out
    assert left_out.endswith(", 1 not a picture. Add --follow-links to read what the links lead to.")


def test_look_alikes_are_counted_with_an_example_and_the_way_out(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", classes=2, size=96)
    altered(Image.open(folder / "Agaricus" / "0003.jpg"))[0].save(folder / "Agaricus" / "near.jpg")
    (folder / "Scene").mkdir()
    for seed in range(12):
        ImageEnhance.Brightness(picture(0, label=2)).enhance(1 + seed / 50).save(folder / "Scene" / f"{seed}.png")
    found = find_pictures(str(folder), cache_dir=tmp_path)
    console = log()
    screen.print_look_alikes(console, found)
    group, scene = lines(console)
    assert "2 pictures in 1 group" in group and "Agaricus/near.jpg" in group and "Agaricus/0003.jpg" in group
    assert "12 pictures" in scene and "Scene/" in scene


def test_a_part_far_from_its_share_is_a_warning_with_its_cause() -> None:
    group = f"{0:032x}"
    alike = [made_up_picture(f"{number:032x}", "defect", group) for number in range(100)]
    catalog = made_up_catalog([*large_catalog(300).pictures, *alike])
    others = [replace(picture, label="defect") for picture in catalog.kept if picture.label == "Agaricus"][:20]
    catalog = made_up_catalog([*(p for p in catalog.pictures if p.label != "Agaricus"), *others])
    console = log()
    screen.print_look_alikes(
        console,
        Pictures(
            **{"name": "", "citation": "", "source": "", "test_data": None, "near_duplicates": "group", "limit": None},
            available=len(catalog.kept),
            catalog=catalog,
            split=split(catalog),
        ),
    )
    found = [line for line in lines(console) if line.startswith("Warning") and "of 'defect'" in line]
    assert len(found) == 1 and "of 120 pictures" in found[0] and "100 of them are near-duplicates" in found[0]
    assert "--near-duplicates keep" in found[0]


def test_no_more_left_out_files_are_listed_than_fit_a_screen(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "many", classes=2)
    for number in range(25):
        (folder / "Agaricus" / f"broken-{number}.jpg").write_bytes(b"")
    found = find_pictures(str(folder), cache_dir=tmp_path).catalog
    console = log()
    screen.print_left_out(console, found, None)
    assert len(lines(console)) == 21
    assert lines(console)[-1].startswith("... and 5 more: --report FILE ")
    console = log()
    screen.print_left_out(console, found, Path("/r/report.csv"))
    assert lines(console)[-1].endswith(" is in /r/report.csv.")


def test_progress_is_a_bar_in_a_terminal_and_a_line_in_a_log() -> None:
    console = log()
    assert list(screen.track(console)([1, 2, 3], "Checking pictures", 3)) == [1, 2, 3]
    assert lines(console) == ["Checking pictures (3) ..."]
    assert list(screen.track(terminal())([1, 2, 3], "Checking pictures", 3)) == [1, 2, 3]


def test_the_metric_is_named_for_the_dashboard() -> None:
    assert METRIC == "validation top-1"
