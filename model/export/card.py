"""The bundle's README.md: a model card in the form that model hubs read.

    Bundle, parity and sizes of its files -> YAML front matter -> Markdown sections -> one text

Names of classes, studies and data are anybody's: they are shown as they are, never as markup.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, cast

from model.export.bundle import Bundle
from model.files import printable
from model.network import cost

MATRIX_CLASSES = 30
"""Up to so many classes the confusion matrix is shown; a wider table can no longer be read."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One file of weights, read in a fresh process, against the eager network on the same real pictures."""

    pictures: int
    """How many were compared."""
    batch_sizes: tuple[int, ...]
    """Each picture was seen in batches of each of these."""
    probability: float
    """Largest |difference| of a probability."""
    log_probability: float
    """Largest |difference| of the natural logarithm of a probability: of logits, but for a constant."""
    disagreements: int
    """Pictures with another first choice, summed over the batch sizes; a tie may fall either way."""
    grey_levels: int | None = None
    """Where the resize is inside: the largest |difference| of a pixel, of 255, from `to_square`'s."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds that one picture takes."""

    median: float
    low: float
    high: float
    """The quartiles."""


class SeedResult(TypedDict):
    """Of one seed's model on the test part."""

    seed: int
    top1: float
    top3: float
    ece: float


class Validation(TypedDict):
    """How much the study's one run flattered."""

    recorded: float
    """The trial's own top-1 on the validation part."""
    finalists_mean: float
    finalists_sd: float | None
    """None of one seed."""


class Baseline(TypedDict):
    """A known recipe, trained by the same code, seeds and data."""

    name: str
    top1_mean: float
    top1_sd: float | None
    """None of one seed."""
    top1: list[float]
    """One per seed that did not diverge."""
    diverged: NotRequired[int]
    """Runs that did."""


class Results(TypedDict):
    """`Bundle.results`: the test part, as shares of 1; the model exported is that of the first seed."""

    looks: int
    """How often models have been measured on this test part, this time included."""
    pictures: int
    top1: float
    top1_interval: Sequence[float]
    """95 % Wilson interval, low and high."""
    top3: float
    top3_interval: Sequence[float]
    ece: float
    """Expected calibration error, after the temperature."""
    loss: float
    per_class: Sequence[float | None]
    """Top-1 of each class; None where the test part has none of it."""
    confusion: NotRequired[Sequence[Sequence[int]]]
    """Truth x prediction."""
    seeds: NotRequired[Sequence[SeedResult]]
    """Those that did not diverge."""
    diverged: NotRequired[int]
    """Runs that did."""
    top1_mean: NotRequired[float]
    top1_sd: NotRequired[float | None]
    validation: NotRequired[Validation]
    baselines: NotRequired[Sequence[Baseline]]
    tested: NotRequired[str]
    """ISO date."""


def card(bundle: Bundle, parity: Mapping[str, Parity], sizes: Mapping[str, int], latency: Latency) -> str:
    """The whole README.md; `parity` and `sizes` (bytes) are of the files of weights, by name."""
    results = cast(Results | None, bundle.results)
    sections = [
        _front_matter(bundle, results),
        _what_it_is(bundle),
        _use(bundle.image_size),
        _data(bundle),
        _results(bundle, results),
        _calibration(bundle, results),
        _files(parity, sizes),
        _latency(bundle, latency),
        _LIMITS,
        _provenance(bundle),
    ]
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def _front_matter(bundle: Bundle, results: Results | None) -> str:
    """What hubs index; every string in JSON's quotes, which are YAML's."""
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
            f"- name: {_yaml(_name(bundle))}",
            "  results:",
            "  - task: {type: image-classification, name: Image classification}",
            f"    dataset: {{type: image-folder, name: {_yaml(str(source))}, split: test}}",
            "    metrics:",
            f"    - {{type: accuracy, name: Top-1 accuracy, value: {results['top1']:.4f}}}",
            f"    - {{type: accuracy, name: Top-3 accuracy, value: {results['top3']:.4f}}}",
            f"    - {{type: expected_calibration_error, name: ECE, value: {results['ece']:.4f}}}",
        ]
    return "\n".join([*lines, "---"])


def _what_it_is(bundle: Bundle) -> str:
    model, weight = bundle.model, cost(bundle.model, bundle.image_size)
    rows = [
        ("input", f"RGB pictures, {bundle.image_size} x {bundle.image_size} pixels"),
        ("output", f"probabilities of {model.classes} classes"),
        ("parameters", f"{weight.parameters:,}"),
        ("arithmetic", f"{weight.flops / 1e6:,.1f} MFLOP a picture"),
        ("width", f"{model.width:g}"),
        ("stride pattern", model.stride_pattern),
        ("dilation pattern", model.dilation_pattern),
        ("pooling", model.pooling),
        ("dropout in training", f"{model.dropout:g}"),
    ]
    return f"""
# {_text(_name(bundle))}

A small residual convolutional network that tells {model.classes} classes of pictures apart. Its architecture and
training were found by an [Optuna](https://optuna.org) study, and it was trained from scratch.

{_table(("", ""), rows)}

## Classes

{_table(("number", "class"), [(str(label), _text(name)) for label, name in enumerate(bundle.classes)])}
"""


def _use(size: int) -> str:
    return f"""
## How to use it

With the program that made it, in three lines:

```python
{in_python()}
```

With onnxruntime, Pillow and numpy alone, in this folder:

```python
{with_onnxruntime(size)}
```

`model.onnx` and `model.pt2` take uint8 pictures of shape (n, {size}, {size}, 3), any n, and give calibrated
probabilities: normalisation and temperature are inside. What comes before is spelt out under `preprocessing` in
`config.json`, and is what the lines above do: upright, RGB, shorter side to {size} pixels with antialiased bicubic
interpolation, central square. Transparent pictures are first laid over white.

`model-any-size.onnx` resizes by itself: it takes one upright RGB picture, uint8 (1, height, width, 3), and also gives
the square that it looked at. On pictures of many sizes that differed from Pillow's by the grey levels, of 255, below.

`model.safetensors` and `config.json` hold tensors and text only. Open `model.pt2` from people you trust.
"""


def in_python() -> str:
    """The README's three lines."""
    return """from model.predict import Classifier
classifier = Classifier.load("path/to/this/folder")
print(next(classifier.predict(["picture.jpg"])))"""


def with_onnxruntime(size: int) -> str:
    """A program that says of picture.jpg what the bundle says, pixel for pixel, without torch and without this code."""
    return f"""import json, numpy, onnxruntime
from PIL import Image, ImageOps

network = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(network.get_modelmeta().custom_metadata_map["classes"])
picture = Image.open("picture.jpg")
picture.draft(None, ({2 * size}, {2 * size}))  # a large JPEG need not be decoded in full
square = ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), ({size}, {size}), Image.Resampling.BICUBIC)
(probabilities,) = network.run(None, {{"pictures": numpy.asarray(square)[None]}})[0]
print([(classes[label], float(probabilities[label])) for label in probabilities.argsort()[::-1][:3]])"""


def _data(bundle: Bundle) -> str:
    return f"## Data\n\n{_listed(_mapping(bundle.provenance.get('data')))}"


def _results(bundle: Bundle, results: Results | None) -> str:
    if results is None:
        return """
## Results

**Not tested.** This model has not been measured on pictures that played no part in its making, so nobody knows how
often it is right. `python study.py retrain` measures it.
"""
    looks = results["looks"]
    seen = "the first look at them" if looks == 1 else f"look number {looks} at them, so they flatter a little"
    when = f" on {_text(results['tested'])}" if "tested" in results else ""
    rows = [
        ("top-1 accuracy", _percent(results["top1"]), _interval(results["top1_interval"])),
        ("top-3 accuracy", _percent(results["top3"]), _interval(results["top3_interval"])),
        ("expected calibration error", _percent(results["ece"]), ""),
        ("cross-entropy", f"{results['loss']:.4f}", ""),
    ]
    parts = [
        "## Results",
        f"Measured{when} on {results['pictures']:,} test pictures that played no part in choosing or training; "
        f"this was {seen}.",
        _table(("", "this model", "95 % Wilson interval"), rows),
        *_spread(results),
        "### Per class",
        _per_class(bundle.classes, results),
    ]
    confusion = results.get("confusion")
    if confusion and len(confusion) <= MATRIX_CLASSES:
        numbers = [str(label) for label in range(len(confusion))]
        parts += [
            "### Confusion matrix",
            "Rows are what the pictures show, columns what the model says, by class number.",
            _table(
                ("", *numbers),
                [(f"{label} {_text(bundle.classes[label])}", *map(str, row)) for label, row in enumerate(confusion)],
            ),
        ]
    return "\n\n".join(parts)


def _spread(results: Results) -> list[str]:
    """How much of a result is luck, and what simpler recipes reach."""
    parts: list[str] = []
    if seeds := results.get("seeds"):
        mean, sd = results.get("top1_mean"), results.get("top1_sd")
        summary = f": {_percent(mean)} on average, standard deviation {_points(sd)}" if mean is not None else ""
        rows = [(str(s["seed"]), *(_percent(s[name]) for name in ("top1", "top3", "ece"))) for s in seeds]
        parts += [
            f"The same recipe over {_runs(len(seeds), results.get('diverged', 0))}{summary}. "
            "The first one's model is this one.",
            _table(("seed", "top-1", "top-3", "ECE"), rows),
        ]
    if validation := results.get("validation"):
        flattered = 100 * (validation["recorded"] - validation["finalists_mean"])
        parts.append(
            f"The study had recorded {_percent(validation['recorded'])} on the validation part, for one run. Trained "
            f"again over several seeds it is {_percent(validation['finalists_mean'])} there (standard deviation "
            f"{_points(validation['finalists_sd'])}): the record was {flattered:+.2f} points off."
        )
    if baselines := results.get("baselines"):
        rows = [
            (
                _text(b["name"]),
                _percent(b["top1_mean"]),
                _points(b["top1_sd"]),
                _runs(len(b["top1"]), b.get("diverged", 0)),
            )
            for b in baselines
        ]
        parts += [
            "Known recipes on the same data, by the same code and seeds:",
            _table(("recipe", "top-1, mean", "standard deviation", "over"), rows),
        ]
    return parts


def _runs(trained: int, diverged: int) -> str:
    return f"{trained} seed{'s' * (trained != 1)}{f' ({diverged} more diverged)' if diverged else ''}"


def _per_class(classes: tuple[str, ...], results: Results) -> str:
    confusion = results.get("confusion")
    counts = [f"{sum(row):,}" for row in confusion] if confusion else ["-"] * len(classes)
    accuracies = map(_percent, results["per_class"])
    return _table(("class", "top-1", "pictures"), zip(map(_text, classes), accuracies, counts, strict=True))


def _calibration(bundle: Bundle, results: Results | None) -> str:
    text = (
        f"Logits are divided by the temperature {bundle.temperature:.4g}, fitted on validation pictures, before "
        "softmax: of the pictures given 70 %, about 70 in a hundred should be right."
        if bundle.temperature != 1
        else "The temperature is 1: probabilities are the network's own, which in most networks promise too much."
    )
    if results is not None:
        text += f" On the test part they are off by {_points(results['ece'])} on average (expected calibration error)."
    return f"## Calibration\n\n{text} That holds for pictures like those of the data, and for no others."


def _files(parity: Mapping[str, Parity], sizes: Mapping[str, int]) -> str:
    rows = [
        (
            f"`{name}`",
            f"{sizes[name]:,}",
            f"{proof.probability:.1e}",
            f"{proof.log_probability:.1e}",
            str(proof.disagreements),
            "-" if proof.grey_levels is None else str(proof.grey_levels),
        )
        for name, proof in parity.items()
    ]
    heading = ("file", "bytes", "probability", "log-probability", "other first choices", "grey levels")
    said = ""
    for proof in list(parity.values())[:1]:
        batches = ", ".join(map(str, proof.batch_sizes))
        said = (
            f"Each was read in a fresh process and compared with the network on {proof.pictures} real pictures, in "
            f"batches of {batches}; the columns give the largest differences. "
        )
    return f"## Files\n\n{said}`config.json` has the sha256 of every file.\n\n{_table(heading, rows)}"


def _latency(bundle: Bundle, latency: Latency) -> str:
    machine = _text(str(bundle.provenance.get("exported on", "the machine that exported it")))
    return (
        f"One picture takes {latency.median:.2f} ms (quartiles {latency.low:.2f} to {latency.high:.2f}) through "
        f"`model.onnx`, by ONNX Runtime on one thread of {machine}; decoding and resizing come on top."
    )


_LIMITS = """
## Intended use

Sorting and exploring pictures of these classes, and learning how such models are made.

## Limits

**Never eat by this.** No picture and no probability tells whether something is safe to eat, to touch or to take; what
is named here as harmless may kill. Nor is it made for any other decision about health, safety or people.

- It knows its classes alone and has no word for anything else: whatever it is shown gets one of their names, often with
  a high probability.
- Other cameras, places, seasons and backgrounds than those of the data lower its accuracy, by how much nobody knows.
- It was trained from scratch; where a pretrained network is allowed, that will be better on photographs.
"""


def _provenance(bundle: Bundle) -> str:
    rest = {name: value for name, value in bundle.provenance.items() if name != "data"}
    return f"## Provenance\n\n{_listed(rest)}"


# --- words and tables


def _name(bundle: Bundle) -> str:
    return str(bundle.provenance.get("study", "image-classifier"))


def _mapping(value: object) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _listed(values: dict[str, Any]) -> str:
    """One row per value; what is nested gets dotted names."""
    rows: list[tuple[str, str]] = []

    def walk(nested: dict[str, Any], prefix: str) -> None:
        for name, value in nested.items():
            if isinstance(value, dict):
                walk(cast(dict[str, Any], value), f"{prefix}{name}.")
            else:
                shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                rows.append((_text(prefix + name), _text(shown)))

    walk(values, "")
    return _table(("", ""), rows) if rows else "Not recorded."


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows))


def _text(text: str) -> str:
    """Text that Markdown, and the HTML inside it, show as it is and in one line; it never stands at a line's start."""
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;"}
    escaped = re.sub(r"[\\`*_\[\]#|~$:@]|(?<=www)\.", r"\\\g<0>", printable(text), flags=re.IGNORECASE)
    return "".join(entities.get(character, character) for character in escaped)


def _yaml(text: str) -> str:
    """In JSON's quotes, which YAML reads as its own."""
    return json.dumps(printable(text), ensure_ascii=False)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} points"


def _interval(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:.2f} to {100 * high:.2f} %"
