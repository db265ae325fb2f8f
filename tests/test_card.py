"""The model card: it shows what is known, says what is not, and no name becomes markup."""

import itertools
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from data.augment import AugmentConfig
from model.export.bundle import Bundle
from model.export.card import MATRIX_CLASSES, WITH_ONNXRUNTIME, Latency, Parity, Results, card, compared
from model.files import printable
from model.metrics import difference
from model.network import ModelConfig, cost
from model.training import TrainingConfig

HOSTILE = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'single' &amp;",
    "a | b || c",
    "line\nbreak\r\n# heading",
    "*bold* _it_ `code` ~~gone~~ [link](http://x.y) ![p](http://x.y/z.png) www.evil.example http://evil.example",
    "---\nkey: [1, 2",
    "x" * 300,
    "Pfifferling キノコ 🍄 \u202eltr\x1b[31m",
    "- item: 'yes' #no {a} %b @user :smile: $x^2$",
    "\\| \\ \\*",
)
PARITY = Parity(pictures=24, batch_sizes=(1, 7, 24), probability=1.2e-7, log_probability=3.4e-6, disagreements=0)
FILES = {"model.safetensors": PARITY, "model.pt2": PARITY, "model.onnx": PARITY}
SIZES = {"model.safetensors": 713_628, "model.pt2": 858_411, "model.onnx": 715_720}


def bundle(classes: tuple[str, ...] = HOSTILE, results: Results | None = None, **provenance: Any) -> Bundle:
    return Bundle(
        model=ModelConfig(classes=len(classes), width=0.25),
        classes=classes,
        image_size=64,
        temperature=1.25,
        provenance={"study": "field-guide", "trial": 7} | provenance,
        results=dict(results) if results else None,
    )


def least(classes: int) -> Results:
    """Return what every test measures."""
    return Results(
        evaluations=1, pictures=210, top1=0.6762, top1_interval=[0.6102, 0.7359], top3=0.9,
        top3_interval=[0.8521, 0.9336], ece=0.0314, ece_chance=0.0512, loss=0.9876,
        per_class=[0.5, None, *[1.0] * (classes - 2)],
    )  # fmt: skip


def comparison(ours: float, theirs: float) -> dict[str, Any]:
    """Return a comparison of the model with a pretrained network, by their top-1."""
    common = {"top1_interval": [0.61, 0.74], "seconds": 61.4}
    winner = common | {"name": "trial | 7", "top1": ours, "parameters": 180_000, "flops": 31_400_000}
    pretrained = common | {"name": "mobilenet_v3_small", "top1": theirs, "parameters": 1_520_000, "flops": 111_000_000}
    return {"weights": "<b>.pth", "pictures": 210, "winner": winner, "pretrained": pretrained}


def full(classes: int) -> Results:
    """Return everything that `retrain` can record."""
    return least(classes) | Results(
        confusion=[[11, 3, *[0] * (classes - 2)], *[[0] * classes for _ in range(classes - 1)]],
        seeds=[
            {"seed": 11, "top1": 0.6762, "top3": 0.9, "ece": 0.0314},
            {"seed": 12, "top1": 0.6571, "top3": 0.89, "ece": 0.05},
        ],
        top1_mean=0.6667, top1_sd=0.0135,
        validation={"recorded": 0.7143, "finalists_mean": 0.6857, "finalists_sd": 0.0095},
        baselines=[{"name": "hand-tuned | recipe", "top1_mean": 0.4333, "top1_sd": 0.0212, "top1": [0.42, 0.44, 0.44]}],
        pretrained=comparison(0.6762, 0.9),
        tested="2026-11-23",
    )  # type: ignore[typeddict-item]  # fmt: skip


def written(made: Bundle) -> str:
    return card(made, FILES, SIZES, Latency(median=0.53, low=0.5, high=0.614))


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Return the front matter as a YAML reader sees it, and the Markdown."""
    _, front, body = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), body


def cells(markdown: str) -> list[list[str]]:
    """Return the text of every table row as a reader sees it; fail if a cell holds anything but text and code."""
    rows: list[list[str]] = []
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown)
    for before, token in itertools.pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("td_open", "th_open"):
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special", "code_inline"}, token.content
            rows[-1].append("".join(child.content for child in children))
        assert token.type != "html_block"
    return rows


# Names


def test_hostile_class_names_are_shown_as_they_are() -> None:
    _, body = parts(written(bundle(results=full(len(HOSTILE)))))
    rows = cells(body)
    for label, name in enumerate(HOSTILE):
        shown = " ".join(printable(name).split(" "))
        assert [str(label), shown] in rows  # the list of classes
        assert any(row[0] == shown and len(row) == 4 for row in rows)  # the table per class
        assert any(row[0] == f"{label} {shown}" for row in rows)  # the confusion matrix
    assert ["hand-tuned | recipe", "43.33 %", "2.12 points", "3 seeds"] in rows


def test_a_pretrained_network_has_its_row_and_what_it_means_is_said() -> None:
    _, body = parts(written(bundle(results=full(len(HOSTILE)))))
    assert cells(body).count(["trial | 7", "67.62 %", "61.00 to 74.00 %", "0.18 M", "31", "61"]) == 1
    assert ["mobilenet_v3_small", "90.00 %", "61.00 to 74.00 %", "1.52 M", "111", "61"] in cells(body)
    assert "&lt;b&gt;.pth" in body
    low, high = difference(0.9, 0.6762, 210)
    says = compared(comparison(0.6762, 0.9))[2]
    assert f"22.38 points better (95 % interval {100 * low:+.2f} to {100 * high:+.2f}): use it" in says
    assert "20.00 points worse" in compared(comparison(0.9, 0.7))[2]
    assert "nothing is lost by training from scratch" in compared(comparison(0.9, 0.7))[2]
    for theirs in (0.88, 0.92):
        assert "may be chance" in compared(comparison(0.9, theirs))[2]
    unknown = comparison(0.9, 0.9)
    unknown["winner"]["seconds"] = None
    assert compared(unknown)[1][0][-1] == "-"


def test_diverged_runs_and_latency_are_shown() -> None:
    results = full(len(HOSTILE)) | Results(diverged=1)  # type: ignore[typeddict-item]
    results["baselines"] = [one | {"diverged": 2} for one in results["baselines"]]
    _, body = parts(written(bundle(results=results, **{"exported on": "a | CPU"})))
    assert "2 seeds (1 more diverged)" in body
    assert any(row[-1] == "3 seeds (2 more diverged)" for row in cells(body))
    assert "0.53 ms" in body
    assert "0.50 to 0.61" in body
    assert r"one thread of a \| CPU" in body


@given(name=st.text(min_size=1, max_size=40))
def test_any_name_is_shown_as_it_is(name: str) -> None:
    rows = cells(parts(written(bundle(("first", f"n{name}n"))))[1])
    assert ["1", printable(f"n{name}n")] in rows


@given(text=st.text(max_size=60))
def test_any_name_makes_good_front_matter(text: str) -> None:
    made = bundle(results=least(len(HOSTILE)), study=text, data={"name": text})
    (entry,) = parts(written(made))[0]["model-index"]
    assert entry["name"] == printable(text)
    assert entry["results"][0]["dataset"]["name"] == printable(text)


def test_a_hostile_provenance_is_text_too() -> None:
    made = bundle(data={"name": HOSTILE[0], "counts": {"a|b": 3}}, versions={"torch": "2.15.0"}, note=HOSTILE[4])
    _, body = parts(written(made))
    rows = cells(body)
    assert ["name", HOSTILE[0]] in rows
    assert ["counts.a|b", "3"] in rows
    assert ["versions.torch", "2.15.0"] in rows
    assert ["note", HOSTILE[4]] in rows
    assert "2.15.0" in body  # as it is in the source, too


# Front matter


def test_hubs_find_what_they_look_for() -> None:
    front, _ = parts(written(bundle(results=full(len(HOSTILE)), data={"name": "field-guide"})))
    assert front["pipeline_tag"] == "image-classification"
    assert front["library_name"] == "mushroom-study"
    assert {"onnx", "safetensors"} <= set(front["tags"])
    assert front["metrics"] == ["accuracy"]
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "image-folder", "name": "field-guide", "split": "test"}
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "Top-1 accuracy": 0.6762,
        "Top-3 accuracy": 0.9,
        "ECE": 0.0314,
    }


def test_no_test_no_numbers() -> None:
    front, body = parts(written(bundle()))
    assert "model-index" not in front
    assert "**Not tested.**" in body
    assert "Wilson" not in body
    assert "per class" not in body


# Results


def test_the_results_are_shown_with_their_uncertainty() -> None:
    _, body = parts(written(bundle(results=full(len(HOSTILE)))))
    rows = cells(body)
    assert ["top-1 accuracy", "67.62 %", "61.02 to 73.59 %"] in rows
    assert ["top-3 accuracy", "90.00 %", "85.21 to 93.36 %"] in rows
    assert ["expected calibration error (ECE)", "3.14 %", ""] in rows
    assert "on 2026-11-23 on 210 test pictures" in body
    assert "66.67 % on average (standard deviation 1.35 points)" in body
    assert ["12", "65.71 %", "89.00 %", "5.00 %"] in rows
    assert "reached 71.43 % on the validation pictures" in body
    assert "68.57 % on average (standard deviation 0.95 points)" in body
    assert "2.86 points above" in body


def test_one_seed_has_no_average_and_no_deviation() -> None:
    made = full(3)
    results: dict[str, Any] = {**made, "seeds": made.get("seeds", [])[:1], "top1_sd": None}
    results["validation"] = {"recorded": 0.7143, "finalists_mean": 0.6857, "finalists_sd": None}
    results["baselines"] = [{"name": "recipe", "top1_mean": 0.4333, "top1_sd": None, "top1": [0.4333]}]
    text = written(bundle(("a", "b", "c"), cast(Results, results)))
    for absent in ("on average (standard", "standard deviation", "several seeds", "above the mean"):
        assert absent not in text
    assert "another seed, it reached 68.57 % there" in text
    assert ["recipe", "43.33 %", "1 seed"] in cells(text)


def test_what_was_not_measured_is_left_out() -> None:
    _, body = parts(written(bundle(results=least(len(HOSTILE)))))
    for absent in ("seeds", "Confusion", "Baselines", "single run", " on None"):
        assert absent not in body
    assert "on 210 test pictures" in body


@pytest.mark.parametrize(
    ("evaluations", "said"),
    [(1, "No others have been evaluated"), (3, "3 evaluations have been made on these pictures")],
)
def test_the_number_of_test_set_evaluations_is_shown(evaluations: int, said: str) -> None:
    results = least(len(HOSTILE)) | Results(evaluations=evaluations)  # type: ignore[typeddict-item]
    assert said in written(bundle(results=results))


def test_each_class_has_its_accuracy_and_a_class_without_pictures_has_none() -> None:
    """With its interval, as 100 % of one picture says little."""
    results = full(3) | {"confusion": [[7, 7, 0], [0, 0, 0], [0, 0, 1]]}
    rows = cells(parts(written(bundle(("a", "b", "c"), cast(Results, results))))[1])
    shown = [row for row in rows if row[0] in ("a", "b", "c")]
    assert shown == [
        ["a", "50.00 %", "26.80 to 73.20 %", "14"],
        ["b", "-", "-", "0"],
        ["c", "100.00 %", "20.65 to 100.00 %", "1"],
    ]


@pytest.mark.parametrize(("classes", "shown"), [(MATRIX_CLASSES, True), (MATRIX_CLASSES + 1, False)])
def test_the_confusion_matrix_is_shown_while_it_can_be_read(classes: int, shown: bool) -> None:
    names = tuple(f"class {number}" for number in range(classes))
    text = written(bundle(names, full(classes)))
    assert ("### Confusion matrix" in text) is shown
    assert (["0 class 0", "11", "3", *["0"] * (classes - 2)] in cells(parts(text)[1])) is shown


# The rest


def test_the_files_are_listed_with_sizes_and_parity() -> None:
    _, body = parts(written(bundle()))
    assert ["model.onnx", "715,720", "1.2e-07", "3.4e-06", "0"] in cells(body)
    assert "24 real pictures" in body
    assert "batches of 1, 7, 24" in body


def test_the_architecture_and_its_cost_are_shown() -> None:
    rows = cells(parts(written(bundle(("a", "b"))))[1])
    weight = cost(ModelConfig(classes=2, width=0.25), 64)
    assert ["parameters", f"{weight.parameters:,}"] in rows
    assert ["computation", f"{weight.flops / 1e6:,.1f} MFLOPs per picture"] in rows
    assert ["stride pattern", "late"] in rows


@dataclass(frozen=True, kw_only=True)
class WithOneKnobMore(ModelConfig):
    squeeze_ratio: float = 0.0625


@dataclass(frozen=True, kw_only=True)
class AugmentWithOneKnobMore(AugmentConfig):
    mix_up: bool = True


def test_every_knob_is_shown_a_new_one_without_further_ado() -> None:
    made = bundle(
        config={
            "image_size": 64,
            "model": asdict(WithOneKnobMore(classes=2)),
            "augment": asdict(AugmentWithOneKnobMore(strength=1.0, reuse_originals=False, fresh=True)),
            "training": asdict(
                TrainingConfig(optimizer="sgd", lr=0.00123456789, schedule="step", epochs=3, batch_size=8)
            ),
        }
    )
    rows = cells(parts(written(replace(made, model=WithOneKnobMore(classes=len(HOSTILE)))))[1])
    for name in {field.name for field in fields(WithOneKnobMore)} - {"classes"}:
        assert len([row for row in rows if row[0] == name.replace("_", " ")]) == 1, name
    assert ["squeeze ratio", "0.0625"] in rows
    assert ["image size", "64"] in rows
    assert ["augment: mix up", "true"] in rows
    assert ["training: learning rate", "0.00123457"] in rows
    for name in {field.name for field in fields(TrainingConfig)} - {"lr"}:
        assert len([row for row in rows if row[0] == f"training: {name.replace('_', ' ')}"]) == 1, name


def test_a_card_without_a_recorded_recipe_says_so() -> None:
    assert "## Training recipe\n\nNot recorded." in written(bundle())


def test_it_says_how_the_probabilities_were_calibrated_or_why_not() -> None:
    assert "Temperature 1.25, fitted on 99 validation" in written(
        bundle(calibration="temperature 1.25, fitted on 99 validation pictures")
    )
    text = written(replace(bundle(calibration="not calibrated: 8 validation pictures"), temperature=1.0))
    assert "Not calibrated\\: 8 validation pictures. The probabilities are the network's own" in text
    assert "5.12 points" in written(bundle(results=full(len(HOSTILE))))


def test_it_says_which_answers_are_sure_and_how_many_of_these_are_right() -> None:
    rule = {"sure answers": "answers of 83 % and more are called sure"}
    sure = {"sure": 150, "sure_top1": 0.96, "sure_interval": (0.916, 0.982)}
    text = written(replace(bundle(results=full(len(HOSTILE)) | sure, **rule), sure=0.83))
    assert "Answers of 83 % and more are called sure." in text
    assert "150 of 210 test pictures had a sure answer, and 96.00 % of these were right (95 % interval 91.60" in text
    assert "No answer is called sure\\:" in written(bundle())


def test_it_says_which_pictures_are_strangers_and_how_many_test_pictures_were_called_so() -> None:
    rule = {"strangers": "pictures beyond those of 95 % are called unlike anything learned"}
    found = {"strangers": 11, "strangers_interval": (0.0295, 0.0914)}
    text = written(replace(bundle(results=full(len(HOSTILE)) | found, **rule), strangest=9.5))
    assert "Pictures beyond those of 95 % are called unlike anything learned." in text
    assert "Of 210 test pictures, 11 were called unlike anything learned (5.24 %, 95 % interval 2.95 to 9.14 %)" in text
    assert "No picture is called a stranger\\:" in written(bundle())


@pytest.mark.parametrize("results", [None, full(len(HOSTILE))])
def test_it_warns_against_eating(results: Results | None) -> None:
    assert "**Never eat " in written(bundle(results=results))


def test_the_program_for_onnxruntime_has_no_more_than_ten_lines() -> None:
    assert len([line for line in WITH_ONNXRUNTIME.splitlines() if line]) <= 10
    assert WITH_ONNXRUNTIME in written(bundle())
    compile(WITH_ONNXRUNTIME, "snippet", "exec")


def test_the_card_depends_on_the_bundle_alone() -> None:
    made = bundle(results=full(len(HOSTILE)))
    assert written(made) == written(made)
    assert written(made).endswith("\n")
