"""What the screen shows of finalists, test results and the bundle: in 80 columns, with every number in its place."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from studies import config, recorded

from commands import results as screen
from model.export.bundle import Bundle
from model.export.card import Latency, Parity
from model.export.formats import Published
from selection.finalists import Candidate, Standing
from selection.retraining import Compared, Comparison, Winner
from selection.test_set_uses import TestSetUse
from tuning.trials import Outcome, Trial

CHOSEN = Candidate(name="trial 3", trial=3, config=config(), recorded=0.9, epoch_seconds=1.0)
WON = Standing(candidate=CHOSEN, runs=(Trial(recorded([0.7])), Trial(recorded([0.1, 0.8]))))
DIVERGED = Trial(recorded([], outcome=Outcome.DIVERGED))
WILD = Standing(
    candidate=replace(CHOSEN, name="trial 12", trial=12, recorded=0.95),
    runs=(Trial(recorded([0.6])), DIVERGED),
)
LOST = Standing(
    candidate=replace(CHOSEN, name="hand-tuned recipe, no warm-up", recorded=0.3, baseline=True),
    runs=(DIVERGED,) * 2,
)
CLASSES = ("Agaricus", "[bold]Boletus[/]", "Röhrling")
RESULTS = {
    "pictures": 1234,
    "top1": 0.75,
    "top1_interval": [0.409, 0.929],
    "top3": 1.0,
    "ece": 0.05,
    "ece_chance": 0.07,
    "per_class": [1.0, 0.5, None],
    "confusion": [[600, 0, 0], [3, 317, 314], [0, 0, 0]],
    "top1_mean": 0.76,
    "top1_sd": 0.0125,
    "baselines": [
        {
            "name": "hand-tuned recipe",
            "top1": [0.5],
            "top1_interval": [0.4, 0.6],
            "top3": 0.9,
            "top1_mean": 0.5,
            "top1_sd": None,
            "diverged": 0,
        }
    ],
    "seeds": [{"seed": 1}, {"seed": 2}],
    "diverged": 1,
    "evaluations": 1,
}
WINNER = Winner(
    name="trial 3",
    trial=3,
    config=config().to_dict(),
    pictures="these",
    trials=40,
    seed_index=0,
    environment={"device": "cpu: x", "threads": "1"},
    seed=1,
    epochs=2,
    trained_on=["train", "validation"],
    weights="best.pt",
    temperature=1.25,
    calibration="temperature 1.25, fitted on 99 validation pictures",
    networks="a b",
    validation={"recorded": 0.9},
    results=RESULTS,
)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def shown(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def cells(console: Console, first: str) -> list[str]:
    """Return the cells of the table row that begins with `first`."""
    (line,) = (line for line in shown(console) if line.startswith(first) and " wins." not in line)
    return re.split(r"\s{2,}", line)


def test_the_standings_show_each_run_the_winner_and_the_luck_of_the_best_single_run(console: Console) -> None:
    screen.print_standings(console, [WON, WILD, LOST])
    assert shown(console)[0] == "Validation top-1 in %"
    assert shown(console)[1].split() == ["study", "seed", "1", "seed", "2", "mean", "sd", "epochs"]
    assert cells(console, "trial 3 ") == ["trial 3", "90.00", "70.00", "80.00", "75.00", "7.07", "3"]
    assert cells(console, "trial 12") == ["trial 12", "95.00", "60.00", "diverged", "60.00", "-", "3"]
    printed = " ".join(shown(console))
    assert "trial 3 wins. The best single run, trial 12, was 35.00 points above its mean over 1 seed." in printed


def test_one_seed_has_no_mean_and_no_deviation(console: Console) -> None:
    screen.print_standings(console, [replace(WON, runs=WON.runs[:1]), replace(LOST, runs=WON.runs[:1])])
    assert shown(console)[1].split() == ["study", "seed", "1", "epochs"]
    assert cells(console, "trial 3 ") == ["trial 3", "90.00", "70.00", "3"]
    assert shown(console)[-1] == "trial 3 wins."
    screen.print_tested(console, WINNER, RESULTS | {"top1_sd": None, "seeds": [{"seed": 1}]}, CLASSES)
    assert cells(console, "trial 3, seed 1")[-1] == "100.00 %"
    assert not any("mean" in line for line in shown(console))


def test_a_baseline_that_diverged_with_every_seed_has_its_row(console: Console) -> None:
    screen.print_standings(console, [WON, LOST])
    row = cells(console, "hand-tuned recipe, no warm-up")
    assert row == ["hand-tuned recipe, no warm-up", "30.00", "diverged", "diverged", "-", "-", "3"]


def test_a_single_run_that_was_unlucky_is_below_its_mean(console: Console) -> None:
    unlucky = replace(WON, candidate=replace(CHOSEN, recorded=0.7))
    screen.print_standings(console, [unlucky])
    assert "The best single run, trial 3, was 5.00 points below its mean over 2 seeds." in " ".join(shown(console))


def test_a_pruned_trial_is_not_compared_with_its_mean(console: Console) -> None:
    """It was recorded after fewer epochs than its finalist runs have."""
    pruned = replace(WON, candidate=replace(CHOSEN, complete=False))
    screen.print_standings(console, [pruned])
    assert shown(console)[-1] == "trial 3 wins."


def test_no_number_is_cut_where_names_are_long_and_seeds_are_many(console: Console) -> None:
    """On 80 columns 3 seeds were `66.…`."""
    steady = replace(LOST, runs=WON.runs[:1] * 5)
    screen.print_standings(console, [replace(WON, runs=WON.runs[:1] * 5), steady])
    assert cells(console, "trial 3")[1:] == ["90.00", *["70.00"] * 5, "70.00", "0.00", "3"]
    assert all("…" not in line for line in shown(console))


def test_a_pretrained_network_stands_beside_the_winner_in_80_columns(console: Console) -> None:
    ours = Compared(
        name="trial 3 (8x)",
        top1=0.9,
        top1_interval=[0.85, 0.95],
        parameters=10**6,
        flops=3 * 10**9,
        seconds=12345.6,
    )
    theirs = replace(ours, name="[red]resnet18", top1=0.5, parameters=20_180_000, flops=5 * 10**9)
    screen.print_compared(
        console,
        Comparison(weights="IMAGENET1K_V1", pictures=200, penalty=0.1, validation=0.5, winner=ours, pretrained=theirs),
    )
    assert cells(console, "trial 3")[1:] == ["90.00 %", "85.00 to 95.00 %", "1.00 M", "3,000", "12,346"]
    assert cells(console, "[red]resnet18  ")[3:5] == ["20.18 M", "5,000"]
    assert "40.00 points worse" in " ".join(shown(console))


def test_a_pretrained_network_that_was_not_tested_is_named(console: Console) -> None:
    screen.print_not_tested(console, [TestSetUse("data", "a b", "elsewhere", "2026-11-23")], "resnet18")
    assert " ".join(shown(console)).startswith("resnet18 was not tested: other networks have been tested ")


def test_the_test_results_of_the_winner_and_the_baselines(console: Console) -> None:
    screen.print_tested(console, WINNER, RESULTS, CLASSES)
    row = cells(console, "trial 3, seed 1")
    assert row == ["trial 3, seed 1: exported", "75.00 %", "40.9 - 92.9 %", "100.00 %", "76.00 %", "1.25 %"]
    row = cells(console, "hand-tuned recipe")
    assert row == ["hand-tuned recipe", "50.00 %", "40.0 - 60.0 %", "90.00 %", "50.00 %", "-"]
    summary = "1,234 pictures, evaluated once; mean and sd over 2 seeds, 1 diverged; "
    summary += "ECE 5.00 % (chance level 7.00 %); temperature 1.25, fitted on 99 validation pictures."
    assert summary in " ".join(shown(console))
    (gain,) = (line for line in shown(console) if "compared with 'hand-tuned recipe'" in line)
    assert gain.startswith("+26.00 points (95 % interval +22.3 to +29.")
    assert cells(console, "Agaricus") == ["Agaricus", "600", "100 % (99 to 100)"]
    assert cells(console, "[bold]") == ["[bold]Boletus[/]", "634", "50 % (46 to 54)", "Röhrling (314)"]
    assert cells(console, "Röhrling") == ["Röhrling", "0", "-"]


def test_a_second_evaluation_is_counted(console: Console) -> None:
    screen.print_tested(console, WINNER, RESULTS | {"evaluations": 2}, CLASSES)
    assert any(line.startswith("1,234 pictures, evaluated 2 times; ") for line in shown(console))


@pytest.mark.parametrize(("count", "times"), [(1, "once"), (3, "3 times")])
def test_the_reason_why_the_test_part_is_not_used_again(count: int, times: str, console: Console) -> None:
    earlier = [TestSetUse("data", str(number), f"[b]study {number}", "2026-01-01T12:00:00") for number in range(count)]
    screen.print_not_tested(console, earlier)
    (line,) = shown(console)
    assert f" of these pictures {times}, last in study '[b]study {count - 1}' at 2026-01-01T12:00:00." in line
    assert line.endswith(" --retest.")


def test_where_the_results_are_and_which_command_comes_next(console: Console) -> None:
    screen.print_next(console, Path("/results/my [b]study"), "--study 'my [b]study'")
    assert shown(console) == [
        "",
        "Finalists: /results/my [b]study/finalists.csv",
        "Result:    /results/my [b]study/retrained.json",
        "Export:    python study.py export --study 'my [b]study'",
    ]


BUNDLE = Bundle(
    model=config().model,
    classes=CLASSES,
    image_size=32,
    temperature=1.0,
    sure=0.9,
    provenance={
        "calibration": "not calibrated: 8 validation pictures do not determine a temperature",
        "sure answers": "of 90 %",
        "strangers": "no picture",
    },
    results=None,
)


def published(folder: Path) -> Published:
    proof = Parity(probability=1e-7, log_probability=2.5e-7, disagreements=1, pictures=64, batch_sizes=(1, 7, 64))
    return Published(
        folder=folder,
        bundle=BUNDLE,
        parity={"model.onnx": proof},
        latency=Latency(median=0.53, low=0.5, high=0.614),
        sizes={"README.md": 4321, "model.onnx": 1_234_567},
    )


def test_the_bundles_files_and_how_to_use_them(console: Console) -> None:
    screen.print_published(console, published(Path("/results/x/best")), WINNER, 40)
    assert cells(console, "README.md") == ["README.md", "4"]
    assert any("model.onnx takes 0.53 ms (0.50 to 0.61) per picture" in line for line in shown(console))
    assert cells(console, "model.onnx  ") == ["model.onnx", "1,235", "2.5e-07", "1 of 192"]
    assert shown(console)[-3:] == [
        "Probabilities: not calibrated: 8 validation pictures do not determine a temperature; of 90 %; no picture.",
        "Exported trial 3 to /results/x/best (test top-1 75.00 %).",
        "Use it:  python study.py predict PICTURE ... --model /results/x/best",
    ]


def test_an_export_before_retrain_is_untested(console: Console) -> None:
    untested = replace(WINNER, results=None, networks="")
    screen.print_published(console, published(Path("/results/x/best")), untested, 40)
    assert "(untested: python study.py retrain " in shown(console)[-2]


def test_an_export_after_a_refused_evaluation_says_so(console: Console) -> None:
    screen.print_published(console, published(Path("/results/x/best")), replace(WINNER, results=None), 40)
    assert "(untested: other networks " in shown(console)[-2]


def test_trials_added_since_the_retraining_are_counted(console: Console) -> None:
    screen.print_published(console, published(Path("/results/x/best")), WINNER, 80)
    assert "after 40 trials, and the study now has 80: run python study.py retrain" in " ".join(shown(console))


def test_the_printed_command_is_quoted_for_a_shell(console: Console) -> None:
    screen.print_published(console, published(Path("/results/my study/best")), WINNER, 40)
    assert shown(console)[-1].endswith("--model '/results/my study/best'")
