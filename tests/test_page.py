"""The report: complete and offline for every kind of study, with nothing in it but text and pictures."""

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
import studies
from optuna.trial import FrozenTrial, TrialState

from data import catalog, sources
from data.augment import AugmentConfig
from data.report import write_report
from data.split import split
from model.network import ModelConfig
from model.training import TrainingConfig
from reporting import page
from reporting.sections import background, outcome, progress
from reporting.sections.parts import Facts
from search_space import baselines
from selection.pruner_audit import PrunerAudit
from selection.retraining import Winner, best_so_far
from tests.stress.made_up_studies import CLASSES, made_up_study, made_up_trials, promoted, write_files, write_finals
from tuning.session import OpenStudy
from tuning.settings import Settings
from tuning.trials import Outcome, count_trials, read_trials, top

HOSTILE = '<script>alert("1")</script>'
NAMES = (
    HOSTILE,
    "<img src=x onerror=alert(1)>",
    "'); DROP TABLE trials; --",
    "$\\frac{1}{0}$ & $x_1$",
    "き の こ 🍄 гриб",
    "x" * 300,
    "{{ 7 * 7 }}{% raw %}",
    "]]>&amp;",
    "Suillus",
)


class Page(HTMLParser):
    """What a browser finds in a page: every element with its attributes, and the text."""

    VOID = frozenset({"meta", "br", "img", "path", "use", "rect", "image", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.elements if "id" in attributes]


def written(
    folder: Path, trials: Sequence[FrozenTrial], *, classes: Sequence[str] = CLASSES, files: bool = True
) -> str:
    study = made_up_study(trials)
    if files:
        write_files(study, folder, classes=classes)
    folder.mkdir(parents=True, exist_ok=True)
    return page.write(study, folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trials() -> list[FrozenTrial]:
    return made_up_trials(40)


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory, trials: list[FrozenTrial]) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("forty")
    return folder, written(folder, trials)


def sentences(text: str) -> str:
    return " ".join(" ".join(Page(text).text).replace("\N{NO-BREAK SPACE}", " ").split())


class TestAWholeStudy:
    def test_every_section_is_there_once_and_reached_from_the_contents(self, forty: tuple[Path, str]) -> None:
        found = Page(forty[1])
        anchors = [str(attributes["id"]) for tag, attributes in found.elements if tag == "section"]
        assert anchors == [
            *("result", "mistakes", "search", "mattered", "cost"),
            *("endings", "data", "settings", "next"),
        ]
        linked = [str(attributes["href"])[1:] for tag, attributes in found.elements if tag == "a"]
        assert set(anchors) <= set(linked)

    def test_it_names_the_best_trial_and_its_value(self, forty: tuple[Path, str], trials: list[FrozenTrial]) -> None:
        best = max((t for t in trials if t.state is TrialState.COMPLETE), key=lambda t: t.value or 0.0)
        baseline = f" ({best.user_attrs['baseline']})" if "baseline" in best.user_attrs else ""
        assert f"Trial {best.number}{baseline} classifies {100 * (best.value or 0.0):.1f} % of" in sentences(forty[1])
        assert f"validation top-1 of trial {best.number}, the best" in sentences(forty[1])

    def test_every_figure_has_a_sentence_and_an_alternative_text(self, forty: tuple[Path, str]) -> None:
        found = Page(forty[1])
        figures = [tag for tag, _ in found.elements if tag == "figure"]
        assert len(figures) == 8
        labels = [attributes["aria-label"] or "" for _, attributes in found.elements if attributes.get("role") == "img"]
        assert len(labels) == len(figures)
        assert all(len(label) > 40 for label in labels)
        assert sum(tag == "svg" for tag, _ in found.elements) == len(figures) + 2, "learning curves are three"
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", forty[1], flags=re.DOTALL)
        assert all(re.search(r"\d", caption) for caption in captions)

    def test_nothing_is_fetched_and_no_script_runs(self, forty: tuple[Path, str]) -> None:
        found = Page(forty[1])
        assert not {"script", "link", "iframe", "object", "image", "img"} & {tag for tag, _ in found.elements}
        for _, attributes in found.elements:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href"):
                assert re.match(r"#|plots/\w+\.html$", attributes.get(name) or "#")
        assert "url(http" not in forty[1]
        assert "@import" not in forty[1]
        policy = next(a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None and policy.startswith("default-src 'none'")

    def test_identifiers_are_unique_and_each_that_is_used_is_there(self, forty: tuple[Path, str]) -> None:
        ids = Page(forty[1]).ids()
        assert len(ids) == len(set(ids))
        used = set(re.findall(r'href="#([^"]+)"', forty[1])) | set(re.findall(r"url\(#([^)]+)\)", forty[1]))
        assert used <= set(ids)

    def test_every_interactive_page_that_is_linked_is_there(self, forty: tuple[Path, str]) -> None:
        folder, text = forty
        linked = set(re.findall(r'href="(plots/[^"]+)"', text))
        assert len(linked) == 8
        assert all((folder / path).is_file() for path in linked)

    def test_it_is_small_and_whole(self, forty: tuple[Path, str]) -> None:
        folder, text = forty
        assert len(text.encode()) < 150_000
        assert sorted(path.name for path in folder.iterdir()) == ["data_report.csv", "plots", "report.html", "trials"]

    def test_every_setting_of_the_best_trial_has_a_row(self, forty: tuple[Path, str]) -> None:
        rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", forty[1])
        for group, kind in {"model": ModelConfig, "training": TrainingConfig, "augment": AugmentConfig}.items():
            names = [name for part, name, _ in rows if part == group]
            assert names == [field.name.replace("_", " ") for field in fields(kind)]

    def test_a_warning_says_that_trials_are_few(self, forty: tuple[Path, str]) -> None:
        assert "trials are few for" in sentences(forty[1])
        assert "python study.py retrain --study made-up" in sentences(forty[1])

    def test_the_same_study_gives_the_same_page(self, forty: tuple[Path, str], trials: list[FrozenTrial]) -> None:
        again = page.render(page.read(made_up_study(trials), forty[0]), now=datetime(2026, 1, 2, 3, 4))
        assert re.sub(r"Written [-\d: ]+", "", again) == re.sub(r"Written [-\d: ]+", "", forty[1])


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory, trials: list[FrozenTrial]) -> str:
    folder = tmp_path_factory.mktemp("retrained")
    study = made_up_study(trials)
    write_files(study, folder)
    write_finals(study, folder, evaluations=2)
    return page.write(study, folder).read_text(encoding="utf-8")


def test_of_a_study_that_was_really_trained(tmp_path: Path) -> None:
    """Made-up studies may lack what a coordinator leaves."""
    tiny = studies.prepare(tmp_path)
    study = tiny.open(first_trials=baselines(studies.TINY))
    for _ in tiny.coordinator(4, study=study).run():
        pass
    found = catalog.scan(sources.resolve(str(tiny.folder), cache_dir=tmp_path, pictures=None), cache_dir=tmp_path)
    write_report(found, tiny.study_folder / "data_report.csv", split(found))
    page.write(study, tiny.study_folder)
    text = (tiny.study_folder / "report.html").read_text(encoding="utf-8")
    best = study.best_trial
    assert f"rial {best.number}" in sentences(text)
    assert f"Training of trial {best.number}" in sentences(text)
    assert {"result", "search", "mattered", "cost", "mistakes", "endings", "data"} <= set(Page(text).ids())
    assert "of 3 classes" in sentences(text)
    assert "Agaricus" in sentences(text)
    assert "hand-tuned recipe" in sentences(text)


class TestAfterRetraining:
    def test_the_test_part_is_the_headline(self, tested: str) -> None:
        assert "top-1 on the test set" in sentences(tested)
        assert "expect less on new pictures. python study.py retrain" not in sentences(tested)

    def test_a_single_run_is_compared_only_with_runs_as_long(self, tmp_path: Path, trials: list[FrozenTrial]) -> None:
        """The mean after twice as many epochs says nothing about the luck of the single run."""
        study = made_up_study(trials)
        write_files(study, tmp_path)
        write_finals(study, tmp_path)
        won = top(read_trials(study), 2)[1]
        for epochs, compared in ((won.epochs, True), (2 * won.epochs, False)):
            lines = ["name,trial,epochs,seed,outcome,top1"]
            lines += [f"winner,{won.number},{epochs},{seed},complete,0.5" for seed in (1, 2)]
            (tmp_path / "finalists.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            text = sentences(page.write(study, tmp_path).read_text(encoding="utf-8"))
            assert ("its single run in the study was" in text) == compared
            assert (f"% after {won.epochs} epochs" in text) != compared

    def test_a_winner_that_was_not_the_studys_best_is_named(self, tested: str) -> None:
        """The report said of the study's best trial what the other one had reached."""
        (won,) = re.findall(r"Trained again, trial (\d+) is better", sentences(tested))
        assert f"Trial {won} classifies" not in sentences(tested)
        assert re.search(rf"Trial {won} won, with [\d.]+ % on average over its seeds", sentences(tested))

    def test_a_winner_with_a_long_name_is_still_marked_as_tested(
        self, tmp_path: Path, trials: list[FrozenTrial]
    ) -> None:
        """The name of a winner with changes was cut before the words that said so."""
        study = made_up_study(trials)
        write_files(study, tmp_path)
        write_finals(study, tmp_path)
        winner = Winner.load(tmp_path)
        assert winner is not None
        replace(winner, name=f"{winner.name}, augmentation 0.6, colour jitter 0.4, lr 0.0275 (4x)").save(tmp_path)
        text = sentences(page.write(study, tmp_path).read_text(encoding="utf-8"))
        assert f"on test: {winner.name}" in text

    def test_a_winner_of_which_the_best_trial_was_no_rival_is_not_called_better(
        self, tmp_path: Path, trials: list[FrozenTrial]
    ) -> None:
        study = made_up_study(trials)
        write_files(study, tmp_path)
        write_finals(study, tmp_path)
        winner, best = Winner.load(tmp_path), top(read_trials(study), 1)[0].number
        assert winner is not None and winner.trial != best
        rows = (tmp_path / "finalists.csv").read_text(encoding="utf-8").splitlines()
        kept = [row for row in rows if row.split(",")[1] != str(best)]
        (tmp_path / "finalists.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
        text = sentences(page.write(study, tmp_path).read_text(encoding="utf-8"))
        assert "is better" not in text
        assert f"Trial {best} was not trained again" in text

    def test_of_one_seed_there_is_no_mean_no_range_and_no_deviation(
        self, tmp_path: Path, trials: list[FrozenTrial]
    ) -> None:
        study = made_up_study(trials)
        write_finals(study, tmp_path)
        rows = (tmp_path / "finalists.csv").read_text(encoding="utf-8").splitlines()
        (tmp_path / "finalists.csv").write_text("\n".join([rows[0], *rows[1::3]]), encoding="utf-8")
        winner = Winner.load(tmp_path)
        assert winner is not None and winner.results is not None
        one = {"top1_sd": None, "seeds": winner.results["seeds"][:1]}
        baselines = [winner.results["baselines"][0] | {"top1": [0.4], "top1_sd": None}]
        replace(winner, results=winner.results | one | {"baselines": baselines}).save(tmp_path)
        facts = page.read(study, tmp_path)
        shown = str(outcome.finalists(facts)) + str(outcome.mistakes(facts))
        assert "luck may have decided" in shown
        for absent in ("on average over its seeds", "The mean over", "standard deviation", "its single run"):
            assert absent not in shown
        assert not re.search(r"\d % \([\d.]+ to", str(outcome.finalists(facts)))

    def test_finalists_and_test_result_have_their_sections(self, tested: str) -> None:
        anchors = [attributes.get("id") for tag, attributes in Page(tested).elements if tag == "section"]
        assert anchors.index("finalists") + 1 == anchors.index("mistakes")
        assert "3 of 3" in sentences(tested)
        assert "Confusion matrix of the test set" in sentences(tested)
        assert "hand-tuned recipe 40.5 % 0.7 % 2, 1 diverged" in sentences(tested)

    def test_a_pretrained_network_stands_beside_the_winner(self, tested: str) -> None:
        assert re.search(r"mobilenet_v3_small [\d.]+ % [\d.]+ to [\d.]+ % 1.52 M 100 12 ", sentences(tested))
        assert "nothing is lost by training from scratch" in sentences(tested)

    def test_a_warning_says_that_several_networks_were_tested(self, tested: str) -> None:
        assert "The test set was used 2 times" in sentences(tested)
        assert "a lucky network" in sentences(tested)

    def test_a_winner_that_was_not_tested_leaves_the_study_as_it_was(
        self, tmp_path: Path, trials: list[FrozenTrial]
    ) -> None:
        study = made_up_study(trials[:8])
        settings = Settings(data="", test_data=None, pictures=None, storage=None)
        best_so_far(OpenStudy(study=study, folder=tmp_path, url="", settings=settings)).save(tmp_path)
        facts = page.read(study, tmp_path)
        assert facts.test is None
        assert outcome.finalists(facts) is None
        assert "expect less" in str(outcome.result(facts))


class TestNextSteps:
    def test_the_commands_find_the_study_and_continue_it_as_it_was_started(
        self, tmp_path: Path, trials: list[FrozenTrial]
    ) -> None:
        options, argv = "--study birds --results /far", ["--data", "my birds", "--study", "birds", "--trials", "40"]
        written = page.write(made_up_study(trials), tmp_path, study_options=options, argv=argv)
        text = sentences(written.read_text(encoding="utf-8"))
        more = 2 * count_trials(read_trials(made_up_study(trials)))
        assert f"python study.py --data 'my birds' --study birds --trials {more}" in text
        assert f"python study.py retrain {options} " in text

    def test_the_page_says_what_the_same_seed_repeats(self, tmp_path: Path, trials: list[FrozenTrial]) -> None:
        facts = page.read(made_up_study(trials), tmp_path)
        assert "bit for bit. Several trials ran at once" in str(background.settings(facts))
        alone = [trial for trial in facts.trials if trial.slot in (0, None)]
        assert "bit for bit. The whole study repeats too" in str(background.settings(replace(facts, trials=alone)))


class TestUnusualStudies:
    def test_without_any_trial(self, tmp_path: Path) -> None:
        text = written(tmp_path, [], files=False)
        assert "no trials yet" in sentences(text)
        assert "<figure" not in text
        assert not list((tmp_path / "plots").iterdir())

    def test_without_a_finished_trial(self, tmp_path: Path) -> None:
        study = made_up_study([])
        study.enqueue_trial({"width": 0.5})
        study.ask()
        study.enqueue_trial({"width": 0.25})
        text = page.write(study, tmp_path).read_text(encoding="utf-8")
        assert "No trial has been trained yet: 1 running and 1 waiting." in sentences(text)

    def test_with_all_pruned(self, tmp_path: Path, trials: list[FrozenTrial]) -> None:
        pruned = [trial for trial in trials if trial.user_attrs["outcome"] == Outcome.PRUNED]
        text = sentences(written(tmp_path, renumbered(pruned)))
        assert f"No trial has been trained to its last epoch yet; {len(pruned)} trials ended early." in text
        assert "no Pareto front yet" in text
        assert "top-1 of trial" not in text

    def test_with_promotion(self, tmp_path: Path, trials: list[FrozenTrial]) -> None:
        study = made_up_study(promoted(trials), scheduler="promote")
        write_files(study, tmp_path)
        text = page.write(study, tmp_path).read_text(encoding="utf-8")
        far = Counter(trial.epochs for trial in read_trials(study) if trial.outcome is Outcome.PRUNED)
        assert sorted(far) == [1] and far[1] > 1
        assert f"{far[1]} to epoch 1" in sentences(text)
        assert "pauses after epoch 1; the best 25 %" in sentences(text)
        assert "Pruning began" not in text
        assert re.search(
            r"stopped earlier: original recipe [\d.]+ % after epoch \d.*retrain --baseline", sentences(text)
        )
        assert "interrupted" not in sentences(text)
        columns = re.findall(r"<rect [^>]*height=", text[text.index("Epochs of each trial") :])
        assert len(columns) >= far.total()

    def test_an_audit_is_suggested_where_early_values_say_little_and_none_was_made(
        self, tmp_path: Path, trials: list[FrozenTrial]
    ) -> None:
        ended = sorted((t for t in trials if t.state is TrialState.COMPLETE), key=lambda trial: trial.value or 0.0)
        for sign, suggested in ((1, False), (-1, True)):
            made = copy.deepcopy(ended)
            for place, trial in enumerate(made):
                trial.intermediate_values[0] = 0.1 + sign * place / 1000
            facts = page.read(made_up_study(made, scheduler="promote"), tmp_path)
            assert facts.rungs == (1,)
            text = str(progress.search(facts))
            assert f"rank correlation {sign:.2f}" in text
            assert ("--audit-pruner" in text) == suggested
            audited = replace(facts, audit=PrunerAudit(best=0.7, pruned=((3, 0.2, 0.6),)))
            assert "--audit-pruner" not in str(progress.search(audited))

    def test_stopped_before_any_trial_was_complete(self, tmp_path: Path, trials: list[FrozenTrial]) -> None:
        """All trials waited when time was up; the page once said that none had been trained."""
        study = made_up_study(promoted(trials, paused=True), scheduler="promote")
        text = sentences(page.write(study, tmp_path).read_text(encoding="utf-8"))
        waiting = [trial for trial in read_trials(study) if trial.is_paused]
        best = max(waiting, key=lambda trial: trial.reached or 0.0)
        assert f"{len(waiting)} trials paused" in text
        assert f"{100 * (best.reached or 0.0):.1f} %, in trial {best.number} after {best.epochs} epoch" in text
        assert "python study.py retrain" in text

    def test_with_one_trial_over_an_older_report(self, tmp_path: Path, trials: list[FrozenTrial]) -> None:
        (tmp_path / "plots").mkdir()
        (tmp_path / "report.html").write_text("an older one")
        (tmp_path / "plots" / "importances.html").write_text("an older one")
        text = sentences(written(tmp_path, trials[:1]))
        assert "an older one" not in text
        assert not (tmp_path / "plots" / "importances.html").exists()
        assert "1 trained trial cannot show what matters" in text
        assert f"{100 * (trials[0].value or 0.0):.1f} %; it is the only one so far" in text

    def test_with_one_epoch_and_nothing_beside_the_database(self, tmp_path: Path) -> None:
        """A trial finished by another program has no configuration, no slot and no confusion matrix."""
        study = optuna.create_study(direction="maximize", study_name="bare")
        study.add_trial(
            optuna.trial.create_trial(
                value=0.5,
                params={"x": 1.0},
                distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
                intermediate_values={0: 0.5},
            )
        )
        text = page.write(study, tmp_path).read_text(encoding="utf-8")
        assert "50.0" in sentences(text)
        assert {"result", "search", "mattered"} <= set(Page(text).ids())

    def test_with_many_classes(self, tmp_path: Path) -> None:
        names = [f"class {label:03d}" for label in range(120)]
        study = made_up_study(made_up_trials(6, classes=120))
        write_files(study, tmp_path, classes=names)
        text = page.write(study, tmp_path).read_text(encoding="utf-8")
        assert "The best and the worst 20 of" in sentences(text)
        assert len(text.encode()) < 300_000

    @pytest.mark.long
    def test_of_a_thousand_trials(self, tmp_path: Path) -> None:
        text = written(tmp_path, made_up_trials(1200))  # of which more than 800 are trained
        assert len(text.encode()) < 300_000
        assert "Shown: 800 of" in sentences(text)

    def test_with_a_torn_history_and_data_of_other_classes(self, tmp_path: Path, trials: list[FrozenTrial]) -> None:
        study = made_up_study(trials[:8])
        write_files(study, tmp_path, classes=("one", "two"))
        for history in tmp_path.glob("trials/*/history.json"):
            history.write_text('[{"epoch": 0, "top')
        facts = page.read(study, tmp_path)
        assert facts.history == []
        assert facts.class_name(3) == "class 3"


@pytest.fixture(scope="module")
def insulted(tmp_path_factory: pytest.TempPathFactory, trials: list[FrozenTrial]) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    write_files(made_up_study(trials), folder, classes=NAMES)
    study = made_up_study(hostile(trials), name=HOSTILE)
    write_finals(study, folder)
    return page.write(study, folder).read_text(encoding="utf-8")


class TestHostileNames:
    def test_they_are_text(self, insulted: str) -> None:
        found = Page(insulted)
        assert not {"script", "img", "b"} & {tag for tag, _ in found.elements}
        assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
        shown = "".join(found.text)
        assert all(name in shown for name in NAMES)
        assert "\x1b" not in insulted

    def test_a_dollar_is_no_formula_in_a_figure(self, insulted: str) -> None:
        drawn = re.findall(r"<text[^>]*>([^<]*)</text>", insulted)
        assert any(label.startswith("$\\frac{1}{0}$") for label in drawn)
        assert any("🍄" in label for label in drawn)

    def test_long_ones_are_cut_in_figures_alone(self, insulted: str) -> None:
        drawn = re.findall(r"<text[^>]*>([^<]*)</text>", insulted)
        assert max(map(len, drawn)) < 60
        assert "x" * 300 in insulted


def renumbered(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return list(made_up_study(trials).get_trials())


def hostile(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials with hostile reasons, baselines, choices and parameters."""
    changed: list[FrozenTrial] = []
    for trial in made_up_study(trials).get_trials():
        attributes: dict[str, Any] = dict(trial.user_attrs)
        attributes["reason"] = f"{HOSTILE} {attributes['reason']}\n\x1b[31m" + "y" * 300
        if "baseline" in attributes:
            attributes["baseline"] = f"<b>{attributes['baseline']}</b> $a$"
        name = '<b onclick="x()">$width$</b>'
        params, distributions = dict(trial.params), dict(trial.distributions)
        params[name], distributions[name] = params.pop("width"), distributions.pop("width")
        params["pooling"] = HOSTILE
        distributions["pooling"] = optuna.distributions.CategoricalDistribution([HOSTILE, "き", "$x$"])
        trial.user_attrs, trial.params, trial.distributions = attributes, params, distributions
        changed.append(trial)
    return changed


def test_facts_of_a_study_that_has_nothing_beside_it(tmp_path: Path) -> None:
    facts = page.read(made_up_study([]), tmp_path)
    assert isinstance(facts, Facts)
    assert (facts.best, facts.pictures, facts.test, facts.classes) == (None, 0, None, None)
