"""The bundle's README.md: a model card in the form that model hubs read.

    Bundle, parity and sizes of its files -> YAML front matter -> Markdown sections -> one text

Names of classes, studies and data may be anything: they are shown as they are, never as markup.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NotRequired, TypedDict, cast

from model.export.bundle import Bundle
from model.files import printable
from model.metrics import difference, wilson
from model.network import cost
from model.preprocessing import Ranges

WARNING = "Never eat anything because of this model."
"""Warning that stands wherever the model is offered for use."""

MATRIX_CLASSES = 30
"""Largest number of classes whose confusion matrix is shown; a wider table is unreadable."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Difference between an exported file, opened in a fresh process, and the network on the same real pictures."""

    pictures: int
    """Number of pictures compared."""
    batch_sizes: tuple[int, ...]
    """Batch sizes in which every picture was run."""
    probability: float
    """Largest absolute difference of a probability."""
    log_probability: float
    """Largest absolute difference of a log-probability, which is a logit up to a constant."""
    disagreements: int
    """Number of pictures with a different most probable class, summed over the batch sizes; ties may go either way."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per picture: the median and both quartiles."""

    median: float
    low: float
    high: float


class Results(TypedDict):
    """Contents of `Bundle.results`: test-set results as shares of 1; the exported model is the first seed's."""

    evaluations: int
    """Number of evaluations on these test pictures so far, of this model and of others."""
    pictures: int
    top1: float
    top1_interval: Sequence[float]
    """95 % Wilson interval of the top-1: (low, high)."""
    top3: float | None
    """Top-3; None for up to three classes."""
    top3_interval: Sequence[float] | None
    ece: float
    """Expected calibration error, after the temperature."""
    ece_chance: float
    """Chance level of the ECE, below which 95 % of test sets of this size stay if every probability is right."""
    sure: NotRequired[int | None]
    """Number of pictures with a sure answer; None if no answer is called sure."""
    sure_top1: NotRequired[float | None]
    """Share of the sure answers that are right; None without one."""
    sure_interval: NotRequired[Sequence[float] | None]
    strangers: NotRequired[int | None]
    """Number of pictures that are called strangers; None if none can be."""
    strangers_interval: NotRequired[Sequence[float] | None]
    loss: float
    per_class: Sequence[float | None]
    """Top-1 within each class; None for a class without test pictures."""
    confusion: NotRequired[Sequence[Sequence[int]]]
    """Pictures by true class (rows) and predicted class (columns)."""
    seeds: NotRequired[Sequence[Mapping[str, Any]]]
    """Test result of each seed that did not diverge: seed, top1, top3, ece."""
    diverged: NotRequired[int]
    """Number of runs that diverged."""
    top1_mean: NotRequired[float]
    top1_sd: NotRequired[float | None]
    """Standard deviation of the top-1 over the seeds; None for a single seed."""
    validation: NotRequired[Mapping[str, Any]]
    """Validation top-1: `recorded` in the search, `finalists_mean` and `finalists_sd` over the finalist runs."""
    baselines: NotRequired[Sequence[Mapping[str, Any]]]
    """Test top-1 of baselines trained the same way: name, top1 (one per seed that did not diverge), top1_mean, top1_sd,
    and diverged, the number of runs that did."""
    pretrained: NotRequired[Mapping[str, Any]]
    """Comparison with a pretrained network, as `compared` takes it."""
    tested: NotRequired[str]
    """Date of the evaluation in ISO format, with or without a time."""


def card(bundle: Bundle, parity: Mapping[str, Parity], sizes: Mapping[str, int], latency: Latency) -> str:
    """Return the text of README.md; `parity` and `sizes` (bytes) belong to the weight files, by name."""
    results = cast(Results | None, bundle.results)
    sections = [
        _front_matter(bundle, results),
        _summary(bundle),
        _usage(bundle),
        f"## Data\n\n{_listed(_mapping(bundle.provenance.get('data')))}",
        _training(bundle),
        _results(bundle, results),
        _calibration(bundle, results),
        _sure(bundle, results),
        _strangers(bundle, results),
        _files(parity, sizes),
        _speed(bundle, latency),
        _LIMITATIONS,
        _provenance(bundle),
    ]
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def _front_matter(bundle: Bundle, results: Results | None) -> str:
    """Return the front matter that model hubs index; strings are quoted as in JSON, which is valid YAML."""
    lines = [
        "---",
        "library_name: mushroom-study",
        "pipeline_tag: image-classification",
        "tags: [image-classification, pytorch, safetensors, onnx, cnn, optuna]",
        "metrics: [accuracy]",
    ]
    if results is not None:
        source = _mapping(bundle.provenance.get("data")).get("name", "not recorded")
        lines += [
            "model-index:",
            f"- name: {_yaml(study_name(bundle))}",
            "  results:",
            "  - task: {type: image-classification, name: Image classification}",
            f"    dataset: {{type: image-folder, name: {_yaml(str(source))}, split: test}}",
            "    metrics:",
            f"    - {{type: accuracy, name: Top-1 accuracy, value: {results['top1']:.4f}}}",
            *(
                []
                if results["top3"] is None
                else [f"    - {{type: accuracy, name: Top-3 accuracy, value: {results['top3']:.4f}}}"]
            ),
            f"    - {{type: expected_calibration_error, name: ECE, value: {results['ece']:.4f}}}",
        ]
    return "\n".join([*lines, "---"])


def _summary(bundle: Bundle) -> str:
    size, network = bundle.image_size, cost(bundle.model, bundle.image_size)
    rows = [
        ("input", f"RGB pictures of {size} x {size} pixels"),
        ("output", f"probabilities of {bundle.model.classes} classes"),
        ("parameters", f"{network.parameters:,}"),
        ("computation", f"{network.flops / 1e6:,.1f} MFLOPs per picture"),
        *_knobs({name: value for name, value in asdict(bundle.model).items() if name != "classes"}),
    ]
    return f"""
# {_text(study_name(bundle))}

A small residual convolutional network that classifies pictures into {bundle.model.classes} classes. An
[Optuna](https://optuna.org) study found its architecture and training recipe, and it was trained from scratch.

{_table(("", ""), rows)}

## Classes

{_table(("number", "class"), [(str(label), _text(name)) for label, name in enumerate(bundle.classes)])}
"""


def _usage(bundle: Bundle) -> str:
    size = bundle.image_size
    return f"""
## Usage

With mushroom-study, the program that made it:

```python
from model.predict import Classifier
classifier = Classifier.load("path/to/this/folder")
print(next(classifier.predict(["picture.jpg"])))
```

With ONNX Runtime, Pillow and NumPy alone, in this folder:

```python
{WITH_ONNXRUNTIME}
```

`model.onnx` and `model.pt2` take uint8 pictures of shape (n, {size}, {size}, 3), for any n, and return
probabilities: normalisation and temperature are part of the graph. The preprocessing before that is in
`preprocessing.py`, the file that mushroom-study itself uses, so that both give the same answer for every picture: turn
it upright, scale values of more than 8 bits{_scaled(bundle.ranges)}, put transparent areas onto white, resize the
shorter side to {size} pixels with antialiased bicubic interpolation, and crop the central square. HEIC files also need
pillow-heif.

`model.safetensors` and `config.json` contain only tensors and text. Run `preprocessing.py` and open `model.pt2` only if
you trust their source.
"""


WITH_ONNXRUNTIME = """\
import json, onnxruntime
from preprocessing import load_square

config = json.load(open("config.json", encoding="utf-8"))
square = load_square(open("picture.jpg", "rb"), config["image_size"], config["ranges"])
network = onnxruntime.InferenceSession("model.onnx")
(probabilities,) = network.run(None, {"pictures": square[None]})[0]
best = sorted(zip(probabilities.tolist(), config["classes"]), reverse=True)[:3]
print([(name, probability) for probability, name in best])"""
"""The card's example for ONNX Runtime, without torch: it classifies picture.jpg as `predict` does."""


def _scaled(ranges: Ranges) -> str:
    """Name the ranges, if the training pictures had any."""
    shown = [f"{kind} of {low:,g} to {high:,g}" for kind, (low, high) in ranges.items()]
    return f" ({' and '.join(shown)} become 0 to 255)" if shown else ""


def _training(bundle: Bundle) -> str:
    recipe = {name: value for name, value in _mapping(bundle.provenance.get("config")).items() if name != "model"}
    if not recipe:
        return "## Training recipe\n\nNot recorded."
    return f"""
## Training recipe

{_table(("", ""), _knobs(recipe))}

The list includes settings that the chosen optimizer or schedule does not use; those had no effect.
"""


def _results(bundle: Bundle, results: Results | None) -> str:
    if results is None:
        return """
## Results

**Not tested.** This model has not been evaluated on held-out pictures, so its accuracy is unknown.
`python study.py retrain` evaluates it.
"""
    when = f" on {_text(results['tested'][:10])}" if "tested" in results else ""
    times = results["evaluations"]
    nth = (
        "No others have been evaluated on these pictures."
        if times == 1
        else f"{times} evaluations have been made on these pictures, so the result may be slightly optimistic."
    )
    top3: list[tuple[str, str, str]] = []
    if results["top3"] is not None and results["top3_interval"] is not None:
        top3 = [("top-3 accuracy", _percent(results["top3"]), _interval(results["top3_interval"]))]
    rows = [
        ("top-1 accuracy", _percent(results["top1"]), _interval(results["top1_interval"])),
        *top3,
        ("expected calibration error (ECE)", _percent(results["ece"]), ""),
        ("cross-entropy", f"{results['loss']:.4f}", ""),
    ]
    parts = [
        "## Results",
        f"Evaluated{when} on {results['pictures']:,} test pictures that were used neither for training nor for "
        f"choosing the model. {nth}",
        _table(("", "this model", "95 % Wilson interval"), rows),
        *_spread(results),
        "### Accuracy per class",
        _per_class(bundle.classes, results),
    ]
    confusion = results.get("confusion")
    if confusion and len(confusion) <= MATRIX_CLASSES:
        numbers = [str(label) for label in range(len(confusion))]
        parts += [
            "### Confusion matrix",
            "Each row is a true class, each column a predicted one, by number.",
            _table(
                ("", *numbers),
                [(f"{label} {_text(bundle.classes[label])}", *map(str, row)) for label, row in enumerate(confusion)],
            ),
        ]
    return "\n\n".join(parts)


def _spread(results: Results) -> list[str]:
    """Say how much of the result is luck, and what the baselines reach."""
    parts: list[str] = []
    if seeds := results.get("seeds"):
        runs = _runs(len(seeds), results.get("diverged", 0))
        names = {"top1": "top-1", "top3": "top-3", "ece": "ECE"}
        shown = {name: head for name, head in names.items() if all(s[name] is not None for s in seeds)}
        rows = [(str(s["seed"]), *(_percent(s[name]) for name in shown)) for s in seeds]
        reached = _mean(results.get("top1_mean"), results.get("top1_sd"))
        parts += (
            [f"Trained with {runs}, the same recipe reached {reached}. This model is from the first seed."]
            if len(seeds) > 1
            else [f"Trained with {runs}: how much of the result is luck is not known."]
        )
        parts.append(_table(("seed", *shown.values()), rows))
    if validation := results.get("validation"):
        mean, sd = validation["finalists_mean"], validation["finalists_sd"]
        gap = 100 * (validation["recorded"] - mean)
        parts.append(
            f"In the search, a single run of this configuration reached {_percent(validation['recorded'])} on the "
            "validation pictures in its best epoch. "
            + (
                f"Trained again with another seed, it reached {_percent(mean)} there after the last epoch."
                if sd is None
                else f"Trained again with several seeds, it reached {_mean(mean, sd)} after the last epoch: the "
                f"single run was {abs(gap):.2f} points {'above' if gap >= 0 else 'below'} the mean over seeds."
            )
        )
    if baselines := results.get("baselines"):
        spread = any(b["top1_sd"] is not None for b in baselines)
        rows = [
            (
                _text(b["name"]),
                _percent(b["top1_mean"]),
                *[_points(b["top1_sd"])] * spread,
                _runs(len(b["top1"]), b.get("diverged", 0)),
            )
            for b in baselines
        ]
        head = ("recipe", "mean top-1", "standard deviation") if spread else ("recipe", "top-1")
        parts += [
            "Baselines, trained by the same code on the same data with the same seeds:",
            _table((*head, "runs"), rows),
        ]
    if comparison := results.get("pretrained"):
        head, rows, says = compared(comparison)
        parts += [_table(head, [(_text(name), *cells) for name, *cells in rows]), _text(says)]
    return parts


def compared(comparison: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Describe a comparison with a pretrained network: `selection.retraining.Comparison` as a mapping.

    Returns the heading and the two rows of a table, and a text that says what the comparison means.
    """
    winner, pretrained = comparison["winner"], comparison["pretrained"]
    rows = [
        (
            one["name"],
            _percent(one["top1"]),
            _interval(one["top1_interval"]),
            f"{one['parameters'] / 1e6:,.2f} M",
            f"{one['flops'] / 1e6:,.0f}",
            "-" if one["seconds"] is None else f"{one['seconds']:,.0f}",
        )
        for one in (winner, pretrained)
    ]
    gain = pretrained["top1"] - winner["top1"]
    low, high = difference(pretrained["top1"], winner["top1"], comparison["pictures"])
    by = f"{_points(abs(gain))} {'better' if gain >= 0 else 'worse'}"
    bounds = f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f})"
    if low > 0:
        means = "use it where its size, its speed and its licence allow that"
    elif high < 0:
        means = "on pictures like these, nothing is lost by training from scratch"
    else:
        means = "that may be chance, and these pictures do not show which is better"
    return (
        ("", "test top-1", "95 % interval", "parameters", "MFLOPs", "seconds"),
        rows,
        f"{pretrained['name']} is {by} {bounds}: {means}. It is torchvision's network with pretrained weights "
        f"({comparison['weights']}) and a logistic regression on its features. MFLOPs are per picture, seconds those "
        "of training.",
    )


def _runs(trained: int, diverged: int) -> str:
    return f"{trained} seed{'s' * (trained != 1)}{f' ({diverged} more diverged)' if diverged else ''}"


def _per_class(classes: tuple[str, ...], results: Results) -> str:
    rows = results.get("confusion") or [[]] * len(classes)
    cells = [
        (
            _text(name),
            _percent(share),
            _interval(wilson(row[label], sum(row))) if sum(row) else "-",
            f"{sum(row):,}" if row else "-",
        )
        for label, (name, share, row) in enumerate(zip(classes, results["per_class"], rows, strict=True))
    ]
    return _table(("class", "top-1", "95 % interval", "pictures"), cells)


def _calibration(bundle: Bundle, results: Results | None) -> str:
    found = _text(bundle.calibration)
    text = f"{found[0].upper()}{found[1:]}. " + (
        "The logits are divided by the temperature before the softmax: of the predictions made with a probability of "
        "70 %, about 70 in 100 should be right."
        if bundle.temperature != 1
        else "The probabilities are the network's own, and most networks are overconfident."
    )
    if results is not None:
        text += (
            f" On the test pictures the probabilities are off by {_points(results['ece'])} on average (ECE); if they "
            f"were exactly right, 95 % of test sets of this size would stay below {_points(results['ece_chance'])}."
        )
    return f"## Calibration\n\n{text} This holds only for pictures like those in the data."


def _sure(bundle: Bundle, results: Results | None) -> str:
    found = _text(bundle.sure_answers)
    text = f"{found[0].upper()}{found[1:]}. "
    if bundle.sure is not None:
        text += "`predict` and `classify.html` call every other answer not sure. "
        if results is not None and (said := sure_result(results)):
            text += f"{said} "
        text += "This, too, holds only for pictures like those in the data: of anything else it may be sure and wrong."
    return f"## Sure and not sure\n\n{text.strip()}"


def sure_result(results: Mapping[str, Any]) -> str:
    """Return a sentence: how many test pictures have a sure answer, and how many of these are right; "" if unknown."""
    sure, top1, interval = (results.get(name) for name in ("sure", "sure_top1", "sure_interval"))
    if sure is None:
        return ""
    share = f"{sure:,} of {results['pictures']:,} test pictures had a sure answer"
    if top1 is None or interval is None:
        return f"{share}."
    return f"{share}, and {_percent(top1)} of these were right (95 % interval {_interval(interval)})."


def _strangers(bundle: Bundle, results: Results | None) -> str:
    found = _text(bundle.strangers)
    text = f"{found[0].upper()}{found[1:]}. "
    if bundle.strangest is not None:
        if results is not None and (said := strangers_result(results)):
            text += f"{said} "
        text += (
            "`predict` and `classify.html` say so instead of calling an answer sure; `model.onnx` and `model.pt2` do "
            "not tell. How many strangers are found depends on what they are: noise and pictures of something quite "
            "different are mostly found, classes that look like the learned ones often are not."
        )
    return f"## Unlike anything it has learned\n\n{text.strip()}"


def strangers_result(results: Mapping[str, Any]) -> str:
    """Return a sentence: how many test pictures are called strangers; "" if unknown."""
    strangers, interval = results.get("strangers"), results.get("strangers_interval")
    if strangers is None or interval is None:
        return ""
    return (
        f"Of {results['pictures']:,} test pictures, {strangers:,} were called unlike anything learned "
        f"({_percent(strangers / results['pictures'])}, 95 % interval {_interval(interval)})."
    )


def _files(parity: Mapping[str, Parity], sizes: Mapping[str, int]) -> str:
    rows = [
        (
            f"`{name}`",
            f"{sizes[name]:,}",
            f"{one.probability:.1e}",
            f"{one.log_probability:.1e}",
            f"{one.disagreements}",
        )
        for name, one in parity.items()
    ]
    one = next(iter(parity.values()))
    return f"""
## Files

Each file was opened in a fresh process and compared with the trained network on {one.pictures} real pictures, in
batches of {", ".join(map(str, one.batch_sizes))}. The table shows the largest difference of a probability and of its
natural logarithm, and for how many pictures the predicted class changed. `config.json` has the SHA-256 of every file.

{_table(("file", "bytes", "probability", "log-probability", "changed class"), rows)}
"""


def _speed(bundle: Bundle, latency: Latency) -> str:
    machine = _text(str(bundle.provenance.get("exported on", "the machine that exported it")))
    return (
        f"With ONNX Runtime, `model.onnx` takes {latency.median:.2f} ms per picture (quartiles {latency.low:.2f} to "
        f"{latency.high:.2f}) on one thread of {machine}, without decoding and resizing."
    )


_LIMITATIONS = f"""
## Intended use

Sorting and exploring pictures of these classes, and learning how such models are made.

## Limitations

**{WARNING}** No picture and no probability can tell whether something is safe to eat,
touch or pick, and what the model takes for harmless may kill. Do not use it for any other decision about health, safety
or people either.

- It knows only its own classes and assigns one of them to any picture, often with a high probability, and not every
  picture of something else is found to be unlike anything it has learned.
- It is less accurate, by an unknown amount, on pictures from other cameras, places, seasons or backgrounds than in
  the data.
- It was trained from scratch. On photographs, a pretrained network will usually do better, if one may be used.
"""


def _provenance(bundle: Bundle) -> str:
    told = ("data", "config", "calibration", "sure answers", "strangers")
    rest = {name: value for name, value in bundle.provenance.items() if name not in told}
    return f"## Provenance\n\n{_listed(rest)}"


# --- words and tables


def study_name(bundle: Bundle) -> str:
    """Return the name of the study that found the network."""
    return str(bundle.provenance.get("study", "image-classifier"))


def _mapping(value: object) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _knobs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return one row per setting of a configuration, its name in words: "training: learning rate" for training.lr."""
    return [(": ".join(map(_in_words, name.split("."))), value) for name, value in _flat(values)]


def _in_words(name: str) -> str:
    return _text("learning rate" if name == "lr" else name.replace("_", " "))


def _listed(values: Mapping[str, Any]) -> str:
    rows = [(_text(name), value) for name, value in _flat(values)]
    return _table(("", ""), rows) if rows else "Not recorded."


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each value's name and its text as Markdown; values in nested mappings have dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            shown = f"{value:g}" if isinstance(value, float) else value
            yield prefix + name, _text(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows))


def _text(text: str) -> str:
    """Escape text so that Markdown, and HTML inside it, show it unchanged on one line; it must not begin a line."""
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;"}
    escaped = re.sub(r"[\\`*_\[\]#|~$:@]|(?<=www)\.", r"\\\g<0>", printable(text), flags=re.IGNORECASE)
    return "".join(entities.get(character, character) for character in escaped)


def _yaml(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} points"


def _mean(mean: float | None, sd: float | None) -> str:
    return f"{_percent(mean)} on average (standard deviation {_points(sd)})"


def _interval(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:.2f} to {100 * high:.2f} %"
