"""Writes a bundle as classify.html, one page that needs neither a server nor a connection, and reads it back.

    Bundle, network -> layout and numbers -> JSON -> `page` -> text of classify.html -> `read`, by which it is verified

The page's policy allows its own script, style, worker and WebAssembly, and nothing else: it can load and send nothing.
Names may contain anything: the template escapes them, and the script shows them as text.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from model.export.bundle import Bundle
from model.export.card import WARNING, Results, strangers_result, study_name, sure_result
from model.files import printable
from model.network import MushroomCNN
from model.page.layout import Floats, Layer, Layout, answer, lay_out

HERE = Path(__file__).resolve().parent
SCRIPTS = ("network.js", "picture.js", "page.js")


def page(bundle: Bundle, network: MushroomCNN) -> str:
    """Return the text of classify.html; the network is on the CPU."""
    layout, numbers = lay_out(network)
    model = {
        "classes": bundle.classes,
        "image_size": bundle.image_size,
        "ranges": bundle.ranges,
        "temperature": bundle.temperature,
        "sure": bundle.sure,
        "strangest": bundle.strangest,
        "network": asdict(layout),
        "kernel": "".join(_asset("kernel.b64").split()),
        "numbers": base64.b64encode(numbers.tobytes()).decode(),
    }
    script = "\n".join(['"use strict";', *map(_asset, SCRIPTS)])
    style = _asset("page.css")
    policy = (
        f"default-src 'none'; script-src {_hash(script)} 'wasm-unsafe-eval'; style-src {_hash(style)}; "
        "worker-src blob:; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(_asset("page.html.j2")).render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        model=Markup(json.dumps(model).replace("<", r"\u003c")),  # no name may end the script element
        name=printable(study_name(bundle)),
        classes=f"{len(bundle.classes):,}",
        warning=WARNING,
        facts=list(_facts(bundle)),
        calibrated=not bundle.calibration.startswith("not calibrated"),
        calibration=printable(bundle.calibration),
        sure=printable(bundle.sure_answers),
        sure_result=sure_result(bundle.results or {}),
        strangers=printable(bundle.strangers),
        strangers_result=strangers_result(bundle.results or {}),
    )


def read(path: Path) -> Callable[[npt.NDArray[np.uint8]], Floats]:
    """Return the function that a page computes: squares, uint8 (N, S, S, 3), to probabilities, float32 (N, classes)."""
    found = re.search('<script type="application/json" id="model">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    model = json.loads(found[1])
    layout = Layout(**model["network"] | {"layers": [Layer(**layer) for layer in model["network"]["layers"]]})
    numbers = np.frombuffer(base64.b64decode(model["numbers"]), dtype="<f4")

    def probabilities(pictures: npt.NDArray[np.uint8]) -> Floats:
        logits = answer(layout, numbers, pictures) / np.float32(model["temperature"])
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    return probabilities


def _facts(bundle: Bundle) -> Iterator[str]:
    """Yield what there is to say about the network: its pictures, its test result, the program's version."""
    counts = _mapping(_mapping(bundle.provenance.get("data")).get("pictures")).values()
    if all(isinstance(count, int) for count in counts) and counts:
        yield f"{sum(counts):,} pictures"
    results = cast(Results | None, bundle.results)
    if results is None:
        yield "never tested, so its accuracy is unknown"
    else:
        low, high = results["top1_interval"]
        when = f", {printable(results['tested'][:10])}" if "tested" in results else ""
        yield (
            f"right for {100 * results['top1']:.1f} % of {results['pictures']:,} test pictures "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %{when})"
        )
    version = _mapping(bundle.provenance.get("exported with")).get("program")
    if isinstance(version, str):
        yield f"version {printable(version)[:10]}"


def _mapping(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, dict) else {}


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what a Content-Security-Policy allows an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
