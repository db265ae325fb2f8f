"""The study's note and plots in the dashboard: complete, up to date, and text alone whatever things are called."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import plotly.graph_objects as go
import pytest
from markdown_it import MarkdownIt
from optuna.trial import FrozenTrial
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from pictures import NAMES, class_folders
from studies import recorded

from data import catalog, sources
from data.catalog import Catalog
from data.split import split
from model.files import printable
from reporting import study_note
from reporting.study_note import EVERY, SHARE, SHOWN_CLASSES, StudyNote, show_finalists
from search_space import PROFILES
from tests.stress.made_up_studies import made_up_study, made_up_trials, write_finals
from tuning.events import TrialEnded, TrialPaused
from tuning.trials import Outcome, live_trial, write_paused

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "| a | `b` | **c**",
    "[x](javascript:alert(1)) $x_1$ &amp; \"q\" 'r'",
    "き の こ 🍄 гриб",
)
STUDY = "a $(reboot) 'b' & c; #d"
"""What a folder may be called."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Pictures of three classes."""
    folder = tmp_path_factory.mktemp("note")
    return scanned(class_folders(folder / "plain", classes=3, each=14), folder)


def scanned(folder: Path, cache: Path) -> Catalog:
    return catalog.scan(sources.resolve(str(folder), cache_dir=cache, pictures=None), cache_dir=cache)


def note_of(study: optuna.Study, folder: Path, found: Catalog, *, trials: int = 40) -> StudyNote:
    return StudyNote(
        study, folder, catalog=found, split=split(found), profile=PROFILES["quick"].fitted(64, 1063), trials=trials
    )


def updated(study: optuna.Study, folder: Path, found: Catalog) -> str:
    """Return the note after an update."""
    note_of(study, folder, found).update()
    return get_note(study)


def figures(study: optuna.Study) -> dict[str, go.Figure]:
    """Return the plots by identity, read as the dashboard reads them; plotly rejects what is not a figure."""
    stored = get_plotly_graph_objects(study._storage.get_study_system_attrs(study._study_id))
    return {name: go.Figure(json.loads(text)) for name, text in stored.items()}


def points(figure: go.Figure) -> int:
    return sum(len(trace.x) for trace in figure.data if trace.mode == "markers")


def ended(number: int = 0) -> TrialEnded:
    return TrialEnded(number=number, outcome=Outcome.COMPLETE, reason="", value=0.5, slot=0)


def text_of(markdown: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", rendered(markdown)))


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


# -- the note


def test_the_note_explains_data_space_progress_and_the_best_trial(found: Catalog, tmp_path: Path) -> None:
    trials = made_up_trials(40)
    study = made_up_study(trials)
    text = text_of(updated(study, tmp_path, found))
    parts = split(found)
    assert f"{len(found.kept)} pictures of 3 classes" in text
    assert f"({len(parts.train)} train, {len(parts.validation)} validation, {len(parts.test)} test)" in text
    assert all(name in text for name in NAMES[:3])
    counted = [t for t in trials if t.user_attrs["outcome"] in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED)]
    assert f"{len(counted)} of 40 trials" in text
    for kind in {trial.user_attrs["outcome"] for trial in trials}:
        assert f"{sum(trial.user_attrs['outcome'] == kind for trial in trials)} {kind}" in text
    best = study.best_trial
    assert f"Best so far: {100 * best.value:.2f} % validation top-1 in trial {best.number}." in text
    baseline = study.get_trials()[0]
    assert f"{baseline.user_attrs['baseline']} {100 * baseline.value:.2f} %" in text


def test_each_class_has_a_row_with_its_pictures_by_part(found: Catalog, tmp_path: Path) -> None:
    page = rendered(updated(made_up_study([]), tmp_path, found))
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)[1:]]
    parts = split(found)
    assert rows == [
        [name, *(str(int((found.labels[part] == label).sum())) for _, part in parts.named())]
        for label, name in enumerate(found.classes)
    ]


def test_many_classes_have_no_table(tmp_path: Path) -> None:
    """Every picture is a class of its own."""
    plain = scanned(class_folders(tmp_path / "many", classes=6, each=10), tmp_path)
    pictures = tuple(replace(one, label=one.path) for one in plain.pictures)
    assert len(pictures) > SHOWN_CLASSES
    many = replace(plain, classes=tuple(sorted(one.path for one in pictures)), pictures=pictures)
    study = made_up_study([])
    settings = {"split": split(plain), "profile": PROFILES["quick"].fitted(64, 1063), "trials": 1}
    StudyNote(study, tmp_path, catalog=many, **settings).update()
    assert "60 pictures of 60 classes" in get_note(study)
    assert "<table>" not in rendered(get_note(study))


def test_the_next_commands_name_the_study(found: Catalog, tmp_path: Path) -> None:
    page = rendered(updated(made_up_study([], name=STUDY), tmp_path, found))
    code = html.unescape(re.findall(r"<code>(.*?)</code>", page, re.DOTALL)[0])
    quoted = "'a $(reboot) '\"'\"'b'\"'\"' & c; #d'"
    assert code == f"python study.py retrain --study {quoted}\npython study.py export --study {quoted}\n"


# -- the plots


def test_a_searched_study_has_two_plots_and_a_retrained_one_three(found: Catalog, tmp_path: Path) -> None:
    study = made_up_study(made_up_trials(40))
    updated(study, tmp_path, found)
    assert sorted(figures(study)) == ["accuracy-against-flops", "importances"]
    write_finals(study, tmp_path)
    show_finalists(study, tmp_path)
    assert sorted(figures(study)) == ["accuracy-against-flops", "finalists", "importances"]


def test_every_plot_has_a_title_and_named_axes(found: Catalog, tmp_path: Path) -> None:
    study = made_up_study(made_up_trials(40))
    write_finals(study, tmp_path)
    updated(study, tmp_path, found)
    assert {figure.layout.title.text for figure in figures(study).values()} == {
        "Accuracy against FLOPs",
        "Importances",
        "Finalists",
    }
    shown = figures(study)
    assert all(shown[name].layout.yaxis.title.text for name in ("accuracy-against-flops", "finalists"))
    assert shown["importances"].layout.xaxis.title.text


def test_accuracy_against_flops_has_a_point_per_trained_trial(found: Catalog, tmp_path: Path) -> None:
    trials = made_up_trials(40)
    study = made_up_study(trials)
    updated(study, tmp_path, found)
    assert points(figures(study)["accuracy-against-flops"]) == sum(bool(t.intermediate_values) for t in trials)


def test_finalists_have_a_point_per_run_and_their_mean(tmp_path: Path) -> None:
    study = made_up_study([])
    rows = [("trial 3", "complete", 0.5), ("trial 3", "complete", 0.7), ("<b>b</b> & c", "complete", 0.4)]
    rows += [("trial 3", "diverged", 0.1)]
    lines = ["name,outcome,top1", *(f"{name},{end},{value}" for name, end, value in rows)]
    (tmp_path / "finalists.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    show_finalists(study, tmp_path)
    runs, means = figures(study)["finalists"].data
    assert list(zip(runs.x, runs.y, strict=True)) == [
        ("trial 3", 0.5),
        ("trial 3", 0.7),
        ("&lt;b&gt;b&lt;/b&gt; &amp; c", 0.4),
    ]
    assert dict(zip(means.x, means.y, strict=True)) == {"trial 3": pytest.approx(0.6)}  # one run has no mean


# -- every kind of study


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [recorded([0.2, 0.3], outcome=Outcome.PRUNED, flops=1e6) for _ in range(5)],
        [recorded([], outcome=Outcome.INFEASIBLE)],
        [recorded([0.4, 0.5], flops=2e6)],
        [optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING)],
        [optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL)],
    ],
    ids=["no trial", "all pruned", "all infeasible", "one trial", "one that waits", "one that failed outside"],
)
def test_every_study_has_a_note(trials: Sequence[FrozenTrial], found: Catalog, tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    text = text_of(updated(study, tmp_path, found))
    best = any(trial.state.name == "COMPLETE" for trial in trials)
    assert ("Best so far" in text) == best
    assert ". ." not in text
    assert ("No trial has finished yet." in text) == (not any(trial.state.is_finished() for trial in trials))


def test_the_note_and_the_plots_follow_the_study(found: Catalog, tmp_path: Path) -> None:
    trials = made_up_trials(40)
    study = made_up_study(trials[:20])
    kept = note_of(study, tmp_path, found)
    kept.update()
    before = points(figures(study)["accuracy-against-flops"])
    study.add_trials(trials[20:])
    kept.update()
    shown = figures(study)
    assert sorted(shown) == ["accuracy-against-flops", "importances"], "none is there twice"
    assert points(shown["accuracy-against-flops"]) > before
    assert f"in trial {study.best_trial.number}." in text_of(get_note(study))


@pytest.mark.parametrize(("there", "every"), [(0, EVERY), (40 * EVERY, 40 * EVERY // SHARE)])
def test_it_is_written_after_every_tenth_trial_or_every_twentieth_part(
    found: Catalog, tmp_path: Path, there: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_note, "LARGEST_SHARE", 1e9)
    study = made_up_study((made_up_trials(40) * EVERY)[:there])
    kept = note_of(study, tmp_path, found)
    for _ in range(2):
        save_note(study, "")
        for number in range(every - 1):
            kept.receive(ended(number))
            kept.receive(None)
        assert get_note(study) == ""
        kept.receive(ended(every))
        assert get_note(study).startswith("# made")


def test_updates_take_no_more_than_their_share_of_the_time(found: Catalog, tmp_path: Path) -> None:
    """With hundreds of slots a twentieth of the trials ends sooner than an update is written."""
    study = made_up_study(made_up_trials(8))
    kept = note_of(study, tmp_path, found)
    kept.update()
    save_note(study, "")
    for number in range(2 * EVERY):
        kept.receive(ended(number))
    assert get_note(study) == ""


def test_a_paused_trial_has_a_note_and_counts_for_an_update(found: Catalog, tmp_path: Path) -> None:
    """In a study that promotes trials, nearly none ends before the last one: the note stayed as it was at the start."""
    study = made_up_study(made_up_trials(8))
    kept = note_of(study, tmp_path, found)
    for number in range(8, 8 + EVERY):
        trial = study.ask()
        trial.report(0.25, 0)
        trial.report(0.125, 1)
        write_paused(trial)
        kept.receive(TrialPaused(slot=0, number=number))
    note = get_note(live_trial(study, 8))
    assert note.startswith("# Trial 8: paused") and "after epoch 2" in note and "25.00 %" in note
    text = text_of(get_note(study))
    assert f"{EVERY} paused" in text and f"{EVERY} to epoch 2" in text


def test_a_shorter_note_leaves_nothing_of_a_longer_one(found: Catalog, tmp_path: Path) -> None:
    """The database keeps a note in pieces."""
    study = made_up_study(made_up_trials(20))
    long = replace(found, classes=tuple(name + "x" * 1500 for name in found.classes),
                   pictures=tuple(replace(one, label=one.label + "x" * 1500) for one in found.pictures))  # fmt: skip
    assert len(updated(study, tmp_path, long)) > 5000
    short = updated(study, tmp_path, found)
    assert short == updated(study, tmp_path / "other", found)
    assert "xxx" not in short


# -- strange names


@pytest.mark.skipif(os.name == "nt", reason="no folder of Windows has such a name")
def test_hostile_names_are_text(tmp_path: Path) -> None:
    for label, name in enumerate(HOSTILE):
        class_folders(tmp_path / "made", classes=label + 1, each=12)
        (tmp_path / "hostile").mkdir(exist_ok=True)
        (tmp_path / "made" / NAMES[label]).rename(tmp_path / "hostile" / name)
    odd = scanned(tmp_path / "hostile", tmp_path)
    study = made_up_study(made_up_trials(12), name=HOSTILE[0])
    page = rendered(updated(study, tmp_path, odd))
    elements = set(re.findall(r"<(\w+)", page))
    assert elements <= {"h1", "h2", "p", "strong", "em", "ul", "li", "pre", "code", "table", "thead", "tbody", "tr",
                        "th", "td"}  # fmt: skip
    cells = [html.unescape(cell) for cell in re.findall(r"<td>([^<]*)</td>", page)]
    assert set(HOSTILE) <= set(cells)
    assert HOSTILE[0] in html.unescape(re.findall(r"<h1>(.*?)</h1>", page)[0])


@pytest.mark.parametrize("name", ["not \udcff UTF-8", "line\nbreak", "x" * 300])
def test_a_class_that_cannot_be_shown_as_it_is_can_be_stored(name: str, found: Catalog, tmp_path: Path) -> None:
    renamed = replace(
        found,
        classes=(name, *found.classes[1:]),
        pictures=tuple(replace(one, label=name if one.label == NAMES[0] else one.label) for one in found.pictures),
    )
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study = made_up_study([], storage=storage)
    assert printable(" ".join(name.split())) in text_of(updated(study, tmp_path, renamed))
