"""The page that classifies pictures: it holds what the network computes, and no name in it becomes markup or script."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_card import HOSTILE, bundle, full, least

from model.network import DILATIONS, STRIDES, ModelConfig, MushroomCNN, Pooling
from model.page.layout import answer, lay_out
from model.page.write import HERE, page, read
from model.preprocessing import normalise


def make_network(model: ModelConfig, seed: int = 0) -> MushroomCNN:
    """Return a network whose batch norm has seen pictures and whose logits are far apart."""
    torch.manual_seed(seed)
    network = MushroomCNN(model)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # the plain mean of what it sees
    network.head.weight.data *= 3
    with torch.no_grad():
        network(torch.randn(4, 3, 32, 32))
    return network.eval()


@settings(max_examples=20, deadline=None)
@given(
    stride=st.sampled_from(list(STRIDES)),
    dilation=st.sampled_from(list(DILATIONS)),
    pooling=st.sampled_from(["avg", "max", "avg+max"]),
    width=st.sampled_from([0.25, 0.4]),
    side=st.integers(16, 35),
)
def test_the_layout_computes_what_the_network_computes(
    stride: str, dilation: str, pooling: Pooling, width: float, side: int
) -> None:
    model = ModelConfig(
        classes=5, width=width, stride_pattern=stride, dilation_pattern=dilation, pooling=pooling, dropout=0.1
    )
    network = make_network(model)
    pictures = np.random.default_rng(side).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = network(normalise(torch.from_numpy(pictures))).numpy()
    np.testing.assert_allclose(answer(*lay_out(network), pictures), expected, atol=2e-5 * np.abs(expected).max())


def test_the_page_is_read_back_as_the_network(tmp_path: Path) -> None:
    one = bundle()
    network = make_network(one.model)
    (tmp_path / "page.html").write_text(page(one, network), encoding="utf-8")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = torch.softmax(network(normalise(torch.from_numpy(pictures))) / one.temperature, dim=1).numpy()
    np.testing.assert_allclose(read(tmp_path / "page.html")(pictures), expected, atol=1e-6)


class Elements(HTMLParser):
    """The elements of a page, and the text within scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inline: dict[str, str] = {}
        self.policy = ""
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on") or name in ("src", "style", "href")], attrs
        self.tags.append(tag)
        self._within = f"{tag} {found.get('type', '')}".strip() if tag in ("script", "style") else ""
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._within:
            self.inline[self._within] = self.inline.get(self._within, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._within = ""


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else() -> None:
    found = Elements(page(bundle(), MushroomCNN(bundle().model)))
    rules = dict(rule.strip().split(maxsplit=1) for rule in found.policy.split(";"))
    for name, text in (("script", found.inline["script"]), ("style", found.inline["style"])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules.pop(f"{name}-src").split(), name
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules == {"worker-src": "blob:"}
    assert found.tags.count("script") == 2
    assert found.tags.count("style") == 1


def test_no_name_becomes_markup() -> None:
    """Every name is an attack: of the classes, the study and the provenance."""
    ours = page(bundle(("one", "two", *map(str, range(len(HOSTILE) - 2)))), MushroomCNN(bundle().model))
    for study in HOSTILE:
        attacked = bundle(study=study, data={"pictures": {study: 5}}, **{"exported with": {"program": study}})
        text = page(attacked, MushroomCNN(attacked.model))
        assert Elements(text).tags == Elements(ours).tags
        assert json.loads(Elements(text).inline["script application/json"])["classes"] == list(HOSTILE)
    assert "\u202e" not in text


def test_the_page_can_be_extended_without_a_change_to_its_parts() -> None:
    found = json.loads(Elements(page(bundle(), MushroomCNN(bundle().model))).inline["script application/json"])
    told = {"classes", "image_size", "ranges", "temperature", "sure", "strangest"}
    assert found.keys() == told | {"network", "kernel", "numbers"}


STRANGERS = {"strangers": 11, "strangers_interval": (0.0295, 0.0914)}
SURE = {"sure": 150, "sure_top1": 0.96, "sure_interval": (0.916, 0.982)}


@pytest.mark.parametrize(
    ("one", "said", "not_said"),
    [
        (bundle(), ["10 classes", "never tested", "percentages are calibrated"], ["version"]),
        (
            replace(bundle(calibration="not calibrated: too few"), temperature=1.0),
            ["not calibrated: too few"],
            ["are calibrated"],
        ),
        (bundle(calibration="not calibrated: too few"), ["network's own"], ["are calibrated"]),
        (
            replace(bundle(calibration="temperature 1.00, fitted on 900"), temperature=1.0),
            ["are calibrated"],
            ["network's own"],
        ),
        (replace(bundle(), temperature=1.0), ["not calibrated"], ["are calibrated"]),
        (bundle(results=least(10)), ["67.6 % of 210 test pictures", "61.0 to 73.6 %"], ["None", "never tested"]),
        (bundle(results=full(10)), ["67.6 % of 210 test pictures", ", 2"], ["never tested"]),
        (
            replace(bundle(**{"sure answers": "answers of 83 % are sure"}, results=full(10) | SURE), sure=0.83),
            ["Answers of 83 % are sure.", "150 of 210 test pictures had a sure answer"],
            [],
        ),
        (bundle(), ["No answer is called sure", "No picture is called a stranger"], []),
        (
            replace(bundle(strangers="pictures beyond are strange", results=full(10) | STRANGERS), strangest=4.5),
            ["Pictures beyond are strange.", "Of 210 test pictures, 11 were called unlike anything learned"],
            [],
        ),
        (bundle(data={"pictures": {"train": 1050, "test": 200}}), ["1,250 pictures"], []),
        (bundle(data="?", **{"exported with": 7}), [], ["pictures ·", "version"]),
        (bundle(**{"exported with": {"program": "0123456789abcdef"}}), ["version 0123456789"], ["abcdef</p>"]),
    ],
)
def test_the_page_says_what_is_known_about_the_network(one: Any, said: list[str], not_said: list[str]) -> None:
    footer = page(one, MushroomCNN(one.model)).partition("<footer>")[2].partition("</footer>")[0]
    assert not [text for text in said if text not in footer], footer
    assert not [text for text in not_said if text in footer], footer


def test_the_warning_of_the_model_card_is_on_the_page() -> None:
    text = page(bundle(), MushroomCNN(bundle().model))
    assert re.search(r'<p class="warning" role="note">Never eat anything', text)


def build_kernel(folder: Path) -> bytes:
    """Compile kernel.c with the command that stands in it."""
    if not shutil.which("clang") or not shutil.which("wasm-ld"):
        pytest.skip("clang and wasm-ld are not on PATH")
    comment = re.findall(r"^//   +(.*)$", (HERE / "kernel.c").read_text(encoding="utf-8"), flags=re.MULTILINE)
    command = " ".join(comment).partition("&&")[0].split()
    assert command[-1] == "kernel.c"
    command[command.index("kernel.wasm")] = str(folder / "kernel.wasm")
    subprocess.run(command, cwd=HERE, check=True, timeout=60)
    return (folder / "kernel.wasm").read_bytes()


def test_the_kernel_imports_nothing_but_memory() -> None:
    kernel = base64.b64decode((HERE / "kernel.b64").read_text())
    assert kernel.startswith(b"\0asm\1\0\0\0")
    assert len(kernel) < 1500
    assert kernel.count(b"\3env") == 1
    assert b"\6memory" in kernel
    assert b"\x08convolve" in kernel
