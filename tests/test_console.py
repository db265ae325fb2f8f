"""The screen: what a person reads, in a terminal of 80 columns, in a log, and with names that are meant to break it."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from pictures import class_folders, flawed_folder, picture
from rich.console import Console

from commands import console as screen
from data import catalog, sources
from data.split import split
from model.training import EpochMetrics
from search_space import PROFILES, Config, known_good, suggest
from tuning.coordinator import Ending, Plan, TrialAdvanced, TrialEnded, TrialPaused, TrialStarted
from tuning.devices import Slot
from tuning.jobs import Assignment, Progress
from tuning.storage import METRIC, Outcome


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, record=True)


def log(width: int = 160) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width, highlight=False, record=True)


def lines(console: Console) -> list[str]:
    return console.export_text(clear=False).splitlines()


def config() -> Config:
    profile = replace(PROFILES["quick"], epochs=10)
    point = known_good(profile)["original recipe"]
    return suggest(optuna.trial.FixedTrial(point), profile, 3)  # type: ignore[arg-type]


def study(values: list[float | None], name: str = "mushrooms") -> optuna.Study:
    """Ended trials as the coordinator leaves them, the first two known-good; None is pruned."""
    made = optuna.create_study(study_name=name, direction="maximize")
    for number, value in enumerate(values):
        attributes: dict[str, Any] = {
            "outcome": str(Outcome.PRUNED if value is None else Outcome.COMPLETE),
            "config": config().to_dict(),
            "flops": 123_456_789,
            "best_top3": 0.9,
            "best_epoch": 4,
        }
        if number < 2:
            attributes["known_good"] = ["original recipe", "improved by hand"][number]
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        made.add_trial(optuna.trial.create_trial(state=state, value=value, user_attrs=attributes))
    return made


def started(slot: int, number: int, *, attempt: int = 1, known: str | None = None) -> TrialStarted:
    point = config()
    price = point.cost
    work = Assignment(config=point, seed=0, epochs=point.training.epochs, key=point.digest, name=known)
    return TrialStarted(slot=slot, number=number, attempt=attempt, assignment=work, cost=price)


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


def test_a_log_gets_one_line_per_ended_trial_with_the_counts() -> None:
    console = log()
    with screen.Screen(console, study([]), trials=12, slots=2, expected=60.0) as shown:
        shown.show(started(0, 0, known="original recipe"))
        shown.show(TrialAdvanced(slot=0, number=0, progress=Progress(share=0.5)))
        shown.show(TrialAdvanced(slot=0, number=0, progress=epoch(0, 0.4)))
        shown.show(None)
        shown.show(ended(0, Outcome.COMPLETE, "trained to its last epoch", 0.5))
        shown.show(started(0, 1))
        shown.show(ended(1, Outcome.PRUNED, "pruned after epoch 4", 0.25))
        shown.show(ended(2, Outcome.INFEASIBLE, "9 flops are over the budget of 8", None, slot=None))
        shown.show(ended(3, Outcome.DUPLICATE, "duplicate of trial 1", None, slot=None))
        shown.show(started(0, 10, attempt=2))
        shown.show(ended(10, Outcome.DIVERGED, "loss is nan in epoch 1", None))
        shown.show(ended(11, Outcome.FAILED, "worker died: killed by SIGKILL", None))
        shown.show(ended(12, None, "ended from outside (deleted)", None))
    printed = lines(console)
    assert [line.partition(" | ")[0] for line in printed] == [
        "trial  0   50.00 %  original recipe, the best so far",
        "trial  1   25.00 %  pruned after epoch 4",
        "trial  2         -  infeasible: 9 flops are over the budget of 8",
        "trial  3         -  duplicate: duplicate of trial 1",
        "trial 10         -  goes on from its last checkpoint",
        "trial 10         -  diverged: loss is nan in epoch 1",
        "trial 11         -  failed: worker died: killed by SIGKILL",
        "trial 12         -  ended from outside (deleted)",
    ]
    assert "1 of 12 trials, 0 pruned, 0 failed, best 50.00 % (trial 0), about " in printed[0]
    assert "3 of 12 trials, 1 pruned, 1 diverged, 1 infeasible, 1 duplicate, 1 failed, best 50.00 %" in printed[-1]


def test_a_study_gone_on_with_counts_what_it_has() -> None:
    console = log()
    with screen.Screen(console, study([0.5, 0.7, None]), trials=4, slots=1, expected=60.0) as shown:
        shown.show(started(0, 3))
        shown.show(ended(3, Outcome.COMPLETE, "trained to its last epoch", 0.6))
    assert lines(console) == ["trial 3   60.00 % | 4 of 4 trials, 1 pruned, 0 failed, best 70.00 % (trial 1), done"]


def test_a_terminal_shows_a_row_per_worker_and_nothing_wider_than_itself() -> None:
    with screen.Screen(terminal(), study([0.5]), trials=1000, slots=3, expected=60.0) as shown:
        shown.show(started(0, 998, known="improved by hand"))
        shown.show(started(1, 999))
        shown.show(TrialAdvanced(slot=0, number=998, progress=epoch(8, 0.5)))
        shown.show(ended(997, Outcome.PRUNED, "pruned after epoch 4", 0.25, slot=None))
    console = terminal()
    console.print(shown._render())
    printed = lines(console)
    assert printed[0].rstrip() == "mushrooms: 2 of 1000 trials, 1 pruned, 0 failed, best 50.00 % (trial 0)"
    assert "gone, about" in printed[-1]
    workers = [line.split() for line in printed if line.startswith("worker")][-3:]
    assert workers[0][:4] == ["worker", "0", "trial", "998"]
    assert "10/10" in workers[0]
    assert workers[1][4] == "starting"
    assert workers[2] == ["worker", "2"]
    assert all(len(line.rstrip()) <= 80 for line in printed)


def test_time_left_is_what_was_expected_until_trials_have_ended() -> None:
    shown = screen.Screen(log(), study([]), trials=10, slots=2, expected=60.0)
    assert shown.seconds_left == 300.0
    shown.show(started(0, 0))
    shown.show(TrialAdvanced(slot=0, number=0, progress=epoch(4, 0.5)))
    assert shown.seconds_left == 285.0  # half of one of ten trials is done
    for number in range(4):
        shown.show(ended(number, Outcome.COMPLETE, "", 0.5, slot=None))
    assert shown.seconds_left < 60.0


def test_a_paused_trial_leaves_its_row() -> None:
    shown = screen.Screen(log(), study([]), trials=10, slots=1, expected=60.0)
    shown.show(started(0, 0))
    shown.show(TrialPaused(slot=0, number=0))
    assert shown.seconds_left == 600.0


def test_a_stop_is_announced_once_with_the_time_it_takes() -> None:
    console = log()
    shown = screen.Screen(console, study([]), trials=10, slots=1, expected=200.0)
    shown.show(started(0, 0))
    shown.show(TrialAdvanced(slot=0, number=0, progress=Progress(share=0.5)))
    shown.stop()
    shown.stop()
    assert lines(console) == ["Stopping when the running epochs end, in about 10 s; once more leaves without them."]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_best_trials_fit_the_terminal_on_a_line_each(width: int) -> None:
    console = terminal(width)
    screen.print_best(console, study([1.0, 0.1, *[0.2 + number / 100 for number in range(20)]]))
    printed = [line.rstrip() for line in lines(console)]
    assert printed[0].split()[:2] == ["trial", "top-1"]
    assert ("top-3" in printed[0]) == ("decay" in printed[0]) == (width >= 100)
    assert all(len(line) <= width for line in printed)
    assert [int(line.split()[0]) for line in printed[1:-1]] == [0, 21, 20, 19, 18, 1]  # five, and the known-good one
    assert printed[-1] == "Known-good starting points: trial 0 (original recipe), 1 (improved by hand)."
    assert printed[1].split()[-1] == "123"


def test_without_a_complete_trial_the_table_says_so() -> None:
    console = log()
    screen.print_best(console, study([None, None]))
    assert lines(console) == ["No trial has been trained to its end yet."]


def test_the_end_says_where_things_lie_and_what_can_be_done() -> None:
    console = log()
    places = "--study 'my mushrooms'"
    screen.print_end(
        console, study([0.5, 0.7, None]), Path("/my results/m"), Ending.TRIALS, ["--trials", "3", "--seed", "1"], places
    )
    assert lines(console)[-7:] == [
        "3 trials: all trials are done.",
        "Go on:    python study.py --seed 1 --trials 6",
        "Look:     python study.py dashboard --study 'my mushrooms'",
        "Report:   python study.py report --study 'my mushrooms'",
        "Retrain:  python study.py retrain --study 'my mushrooms'",
        "Table:    /my results/m/trials.csv",
        "Pictures: /my results/m/data_report.csv",
    ]


def test_an_interrupted_study_names_the_command_that_goes_on() -> None:
    console = log()
    half = study([0.5])
    half.ask()
    screen.print_end(console, half, Path("/r"), Ending.STOPPED, ["--trials", "9"], "--study r")
    assert lines(console)[-7:-5] == [
        "1 trial: stopped. 1 half-way, their finished epochs are kept.",
        "Go on:    python study.py --trials 9",
    ]


TWO_GPUS = [Slot(device=f"cuda:{index}", threads=8, precision="bfloat16") for index in range(2)]


def plan_text(console: Console, name: str, first_pruning: int | None) -> str:
    screen.print_plan(console, name, Plan(trials=40), 10, first_pruning, TWO_GPUS, wanted=30, expected=60.0)
    return " ".join(" ".join(lines(console)).split())


def test_the_plan_says_how_much_how_long_and_when_it_prunes() -> None:
    assert plan_text(log(), "mushrooms", 4) == (
        "Study 'mushrooms': 30 of 40 trials to go, each of 10 epochs, pruned after epoch 4 at the earliest; "
        "2 at once on cuda in bfloat16: about 15 min."
    )
    assert "each of 10 epochs, never pruned;" in plan_text(log(), "mushrooms", None)


def test_lines_break_between_words() -> None:
    """A terminal of 100 columns cut "2 at once on cpu" after "o"."""
    console = terminal(70)
    plan_text(console, "mushrooms", 4)
    assert all(len(line.rstrip()) <= 70 for line in lines(console))
    assert [line.split()[-1] for line in lines(console)] == ["pruned", "15", "min."]


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


def test_names_are_shown_as_text_whatever_they_hold(odd_folder: Path, tmp_path: Path) -> None:
    found = catalog.scan(sources.resolve(str(odd_folder), cache_dir=tmp_path, pictures=None), cache_dir=tmp_path)
    console = terminal(120)
    screen.print_catalog(console, found, split(found))
    screen.print_left_out(console, found, None)
    text = "\n".join(lines(console))
    for name in ("[red]x ", "[bold ", "a\\nb ", "Pilze äöü 蘑菇 ", "\\x1b[31mred ", "[link=x]y "):
        assert f"\n{name}" in text
    assert "unreadable: [red]x/[bold]broken.jpg (" in text
    for name in ("[red]x", "[/bold]"):
        assert f"Study '{name}': 30 of 40" in plan_text(log(), name, 4)


def test_the_table_of_classes_counts_each_part_and_what_is_left_out(tmp_path: Path) -> None:
    folder = flawed_folder(tmp_path / "flawed")
    found = catalog.scan(sources.resolve(str(folder), cache_dir=tmp_path, pictures=None), cache_dir=tmp_path)
    parts = split(found)
    console = terminal()
    screen.print_catalog(console, found, parts)
    rows = {line.split()[0]: line.split()[1:] for line in lines(console)}
    assert rows["class"] == ["train", "validation", "test", "left", "out"]
    assert sum(int(cell) for name in ("Agaricus", "Amanita", "Boletus") for cell in rows[name][:3]) == len(found.kept)
    assert rows["all"] == [
        *(str(len(places)) for _, places in parts.named()),
        str(len(found.pictures) - len(found.kept)),
    ]
    assert rows["Empty"] == ["0"]
    assert "Left out: 3 unreadable, 1 too small, 1 duplicate, 2 conflict, 4 refused, 1 not a" in lines(console)[-2]


def test_left_out_files_are_listed_up_to_a_screenful(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "many", classes=2)
    for number in range(25):
        (folder / "Agaricus" / f"broken-{number}.jpg").write_bytes(b"")
    found = catalog.scan(sources.resolve(str(folder), cache_dir=tmp_path, pictures=None), cache_dir=tmp_path)
    console = log()
    screen.print_left_out(console, found, None)
    assert len(lines(console)) == 21
    assert lines(console)[-1] == "... and 5 more; --report FILE writes the verdict on every file."
    console = log()
    screen.print_left_out(console, found, Path("/r/report.csv"))
    assert lines(console)[-1] == "The verdict on every file is in /r/report.csv."


def test_a_long_pass_is_a_bar_in_a_terminal_and_a_line_in_a_log() -> None:
    console = log()
    assert list(screen.track(console)([1, 2, 3], "Looking at the pictures", 3)) == [1, 2, 3]
    assert lines(console) == ["Looking at the pictures (3) ..."]
    assert list(screen.track(terminal())([1, 2, 3], "Looking at the pictures", 3)) == [1, 2, 3]


def test_the_metric_is_named_for_the_dashboard() -> None:
    assert METRIC == "validation top-1"
