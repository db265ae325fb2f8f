"""The bundle: what is loaded is what was saved, and whatever else may lie there is refused by name."""

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.export.bundle import CONFIG, FORMAT, WEIGHTS, Bundle, BundleError, load, save, seal, verify
from model.network import ModelConfig, MushroomCNN
from model.plain_json import MAX_BYTES, MAX_DEPTH
from model.preprocessing import VERSION
from model.strangers import Familiar, fit

MODEL = ModelConfig(classes=3, width=0.25, stride_pattern="every", dilation_pattern="alternating", dropout=0.1)
BUNDLE = Bundle(
    model=MODEL,
    classes=("Agaricus", 'Pfifferling "Über" | <b>', "キノコ\n2"),
    image_size=32,
    temperature=1.25,
    sure=0.83,
    strangest=7.5,
    ranges={"integers": [0, 4095], "floats": [-0.5, 1.5]},
    provenance={"study": "tiny", "trial": 7, "versions": {"torch": "2.15.0"}},
    results={
        "evaluations": 1,
        "pictures": 3,
        "confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "per_class": [1.0, None, 0.5],
    },
)


def weights(config: ModelConfig = MODEL) -> dict[str, torch.Tensor]:
    """Return a network's weights in the memory layout of training, with statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = MushroomCNN(config).to(memory_format=torch.channels_last)
    network(torch.randn(4, 3, 32, 32))
    network.familiar = fit(
        torch.randn(9, network.head.in_features), torch.arange(9) % config.classes, config.classes, [9.0, 2.0, 1.0, 0.5]
    )
    return network.state_dict()


WEIGHTS_SAVED = weights()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Save a good bundle, to be damaged."""
    place = tmp_path / "best"
    place.mkdir()
    save(place, BUNDLE, WEIGHTS_SAVED)
    return place


def refused(folder: Path, path: Path | None = None) -> str:
    """Return the one line that refuses the bundle and names `path`, by default the folder."""
    with pytest.raises(BundleError) as raised:
        load(folder)
    message = str(raised.value)
    assert str(path or folder) in message
    assert message.isprintable()
    return message


def alter(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json as somebody with an editor would."""
    contents = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    change(contents)
    (folder / CONFIG).write_text(json.dumps(contents), encoding="utf-8")


def replace_weights(folder: Path, content: bytes) -> None:
    """Replace the weights and their hash, as somebody who knows the format would."""
    (folder / WEIGHTS).write_bytes(content)
    alter(folder, lambda config: config["files"].update({WEIGHTS: hashlib.sha256(content).hexdigest()}))


def as_safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


# What was saved


def test_what_is_loaded_is_what_was_saved(folder: Path) -> None:
    bundle, network = load(folder)
    assert bundle == BUNDLE
    loaded = network.state_dict()
    assert loaded.keys() == WEIGHTS_SAVED.keys()
    for name, tensor in WEIGHTS_SAVED.items():
        assert torch.equal(tensor, loaded[name]), name
        assert tensor.dtype == loaded[name].dtype


def test_the_network_is_ready_to_use(folder: Path) -> None:
    _, network = load(folder)
    assert not network.training
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert network.block1.branch[0].weight.is_contiguous(memory_format=torch.channels_last)
    same = MushroomCNN(MODEL).to(memory_format=torch.channels_last).eval()
    same.familiar = Familiar(MODEL.classes, same.head.in_features)
    same.load_state_dict(WEIGHTS_SAVED)
    pictures = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(network(pictures), same(pictures))


def test_loading_draws_no_random_number(folder: Path) -> None:
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_the_same_bundle_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    save(again, BUNDLE, WEIGHTS_SAVED)
    for name in (CONFIG, WEIGHTS):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_a_person_can_read_the_description(folder: Path) -> None:
    text = (folder / CONFIG).read_text(encoding="utf-8")
    assert 'Pfifferling \\"Über\\"' in text
    assert "\n      [1, 0, 0],\n" in text  # a row of the confusion matrix in one line
    contents = json.loads(text)
    assert contents["architecture"] == asdict(MODEL)
    assert contents["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert contents["preprocessing"]["crop"] == "central square"


def test_a_class_folder_whose_name_is_no_utf8_makes_the_round_trip(folder: Path) -> None:
    odd = replace(BUNDLE, classes=("a", "b", os.fsdecode(b"caf\xe9") if os.name != "nt" else "caf\udce9"))
    save(folder, odd, WEIGHTS_SAVED)
    assert load(folder)[0] == odd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a", "", "c")}, "a class is named ''"),
        ({"classes": ("a", "b", "a")}, "two classes are named 'a'"),
        ({"classes": ("a", "b")}, "2 class names for 3 logits"),
        ({"image_size": 15}, "`16 <= image_size <= 4096` must hold, but got 15"),
        ({"image_size": 4097}, "`16 <= image_size <= 4096` must hold, but got 4097"),
        ({"temperature": 0.0}, "`0.001 <= temperature <= 1000` must hold, but got 0.0"),
        ({"temperature": float("nan")}, "`0.001 <= temperature <= 1000` must hold, but got nan"),
        ({"strangest": 1e10}, "`-1e+09 <= strangest <= 1e+09` must hold, but got 10000000000.0"),
        ({"sure": 83.0}, "`0 <= sure <= 1` must hold, but got 83.0"),
        ({"ranges": {"bytes": [0, 1]}}, "but is 'bytes', [0, 1]"),
        ({"ranges": {"integers": [5, 5]}}, "but is 'integers', [5, 5]"),
        ({"ranges": {"floats": [0, 10**400]}}, "but is 'floats', [0, 1000"),
        ({"ranges": {"floats": [0]}}, "but is 'floats', [0]"),
    ],
)
def test_a_bundle_keeps_its_rules(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(BUNDLE, **change)


# Every file of the folder


def test_sealing_lists_every_file(folder: Path) -> None:
    (folder / "README.md").write_text("a card")
    seal(folder, BUNDLE)
    listed = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["files"]
    assert listed == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("README.md", WEIGHTS)}
    verify(folder)


def test_verify_names_what_differs(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"new")
    with pytest.raises(BundleError, match=r"config\.json .*does not match the folder: 'model\.onnx'"):
        verify(folder)
    seal(folder, BUNDLE)
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx .*sha256"):
        verify(folder)


def test_only_what_is_opened_must_be_there(folder: Path) -> None:
    """A note in the card, or a bundle without its ONNX file, is a good bundle to this program."""
    (folder / "model.onnx").write_bytes(b"onnx")
    (folder / "README.md").write_text("a card")
    seal(folder, BUNDLE)
    (folder / "model.onnx").unlink()
    (folder / "README.md").write_text("a card with a note")
    assert load(folder)[0] == BUNDLE


# Whatever else may lie there


def test_no_folder(tmp_path: Path) -> None:
    message = refused(tmp_path / "nothing")
    assert message.startswith("no bundle in ")
    assert "python study.py export" in message
    assert "--model" in message


def test_a_folder_without_a_bundle(tmp_path: Path) -> None:
    assert f"{CONFIG} is missing" in refused(tmp_path)


def test_a_file_instead_of_its_folder(folder: Path) -> None:
    assert "no bundle in" in refused(folder / CONFIG)


def test_a_description_without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert f"{WEIGHTS} is missing" in refused(folder)


def test_a_bundle_of_version_1_has_no_ranges(folder: Path) -> None:
    save(folder, replace(BUNDLE, ranges={}), WEIGHTS_SAVED)
    alter(folder, lambda config: (config.update(format="mushroom-study bundle 1"), config.pop("ranges")))
    assert load(folder)[0] == replace(BUNDLE, ranges={})


def test_a_bundle_of_version_3_knows_no_strangers(folder: Path) -> None:
    plain = {name: tensor for name, tensor in WEIGHTS_SAVED.items() if not name.startswith("familiar")}
    save(folder, replace(BUNDLE, strangest=None), plain)
    alter(folder, lambda config: (config.update(format="mushroom-study bundle 3"), config.pop("strangest")))
    bundle, network = load(folder)
    assert (bundle.strangest, network.familiar) == (None, None)


@pytest.mark.parametrize("number", [5, 10, 999])
def test_a_newer_format(folder: Path, number: int) -> None:
    alter(folder, lambda config: config.update(format=f"mushroom-study bundle {number}"))
    message = refused(folder, folder / CONFIG)
    assert f"'mushroom-study bundle {number}'" in message
    assert "newer version" in message
    assert "update this program" in message


def test_a_newer_format_is_named_before_its_new_fields(folder: Path) -> None:
    alter(folder, lambda config: (config.update(format="mushroom-study bundle 5", layers=[]), config.pop("classes")))
    assert "newer version" in refused(folder)


@pytest.mark.parametrize(
    "found", ["mushroom-study bundle 0", "mushroom-study bundle x", "another/1", None, 1, [], {"a": 1}]
)
def test_another_format(folder: Path, found: object) -> None:
    alter(folder, lambda config: config.update(format=found))
    message = refused(folder, folder / CONFIG)
    assert f"its format is {found!r}, not {FORMAT!r}" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "'utf-8'"),
        (b'{"format": ', "Expecting value"),
        (b"[1, 2]", "[1, 2] is not an object"),
        (b'{"format": 1, "format": 2}', "duplicate key 'format'"),
        (b'{"temperature": NaN}', "'NaN' is not a finite number"),
        (b'{"temperature": -Infinity}', "'-Infinity' is not a finite number"),
        (b'{"temperature": 1e999}', "'1e999' is not a finite number"),
        (b'{"temperature": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", f"more than {MAX_DEPTH} levels"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", f"more than {MAX_DEPTH} levels"),
        (b" " * (MAX_BYTES + 1), f"more than {MAX_BYTES:,} bytes"),
        (pickle.dumps({"format": FORMAT}), "a pickle, which may run code"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_description_that_is_none(folder: Path, content: bytes, reason: str) -> None:
    (folder / CONFIG).write_bytes(content)
    assert reason in refused(folder, folder / CONFIG)


def test_as_deep_as_allowed_is_allowed(folder: Path) -> None:
    nested: object = 1
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    alter(folder, lambda config: config["provenance"].update(deep=nested[0]))  # type: ignore[index]
    assert load(folder)[0].provenance["study"] == "tiny"


@pytest.mark.parametrize("name", ["format", "classes", "architecture", "image_size", "temperature", "results", "files"])
def test_a_field_that_is_missing(folder: Path, name: str) -> None:
    alter(folder, lambda config: config.pop(name))
    reason = "format is None" if name == "format" else f"missing fields: '{name}'"
    assert reason in refused(folder, folder / CONFIG)


@pytest.mark.parametrize("name", sorted(asdict(MODEL).keys() - {"classes"}))
def test_an_older_bundle_without_a_knob_opens_with_its_default(folder: Path, name: str) -> None:
    default = replace(MODEL, **{name: getattr(ModelConfig(classes=3), name)})
    save(folder, replace(BUNDLE, model=default), weights(default))
    alter(folder, lambda config: config["architecture"].pop(name))
    assert load(folder)[0].model == default


def test_a_knob_without_a_default_is_required(folder: Path) -> None:
    alter(folder, lambda config: config["architecture"].pop("classes"))
    assert "missing fields: 'architecture.classes'" in refused(folder, folder / CONFIG)


@dataclass(frozen=True, kw_only=True)
class WithOneKnobMore(ModelConfig):
    squeeze_ratio: float = 0.0625


def test_a_new_knob_is_in_the_description_without_further_ado(folder: Path) -> None:
    seal(folder, replace(BUNDLE, model=WithOneKnobMore(**asdict(MODEL))))
    contents = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    assert contents["architecture"] == asdict(MODEL) | {"squeeze_ratio": 0.0625}


def test_fields_that_are_not_known(folder: Path) -> None:
    alter(folder, lambda config: config["architecture"].update(layers=3))
    assert "unknown fields: 'architecture.layers'" in refused(folder, folder / CONFIG)
    alter(folder, lambda config: (config["architecture"].pop("layers"), config.update({"\x1b[31m": 1, "b": 2})))
    assert "unknown fields: '\\x1b[31m', 'b'" in refused(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", "abc"),
        ("classes", {"a": 0}),
        ("image_size", 32.0),
        ("image_size", "32"),
        ("image_size", True),
        ("temperature", True),
        ("temperature", None),
        ("sure", "0.9"),
        ("strangest", "9"),
        ("provenance", []),
        ("results", "none"),
        ("files", [WEIGHTS]),
        ("ranges", {"floats": "01"}),
    ],
)
def test_a_field_of_the_wrong_type(folder: Path, name: str, value: object) -> None:
    alter(folder, lambda config: config.update({name: value}))
    assert f"'{name}' is {value!r}, not " in refused(folder, folder / CONFIG)


@pytest.mark.parametrize(
    ("name", "value"),
    [("classes", 3.0), ("classes", True), ("width", "1"), ("stride_pattern", None), ("pooling", ["avg"])],
)
def test_an_architecture_of_the_wrong_type(folder: Path, name: str, value: object) -> None:
    alter(folder, lambda config: config["architecture"].update({name: value}))
    assert f"'architecture.{name}' is {value!r}, not " in refused(folder)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"image_size": 8}, "`16 <= image_size <= 4096` must hold, but got 8"),
        ({"image_size": 10**300}, "`16 <= image_size <= 4096` must hold"),
        ({"temperature": 0}, "`0.001 <= temperature <= 1000` must hold, but got 0"),
        ({"temperature": 10**400}, "`0.001 <= temperature <= 1000` must hold"),
        ({"classes": ["a", "b"]}, "2 class names for 3 logits"),
        ({"classes": ["a", "b", "b"]}, "two classes are named 'b'"),
        ({"classes": ["a", "b", ""]}, "a class is named ''"),
        ({"classes": ["a", "b", 3]}, "a class is named 3"),
        ({"architecture": asdict(MODEL) | {"width": 9}}, "`0 < width <= 8` must hold, but got 9"),
        ({"architecture": asdict(MODEL) | {"classes": 10**12}}, "3 class names for 1000000000000 logits"),
        ({"architecture": asdict(MODEL) | {"pooling": "x" * 9000}}, "not one of 'avg', 'max', 'avg+max'"),
    ],
)
def test_a_description_that_breaks_a_rule(folder: Path, change: dict[str, Any], rule: str) -> None:
    alter(folder, lambda config: config.update(change))
    message = refused(folder, folder / CONFIG)
    assert rule in message
    assert len(message) < 500 + len(str(folder))


@pytest.mark.parametrize(
    ("name", "value"), [("version", VERSION + 1), ("mean", [0.485, 0.456, 0.406]), ("std", None), ("std", [0.25])]
)
def test_other_preprocessing(folder: Path, name: str, value: object) -> None:
    alter(folder, lambda config: config["preprocessing"].update({name: value}))
    message = refused(folder, folder / CONFIG)
    assert f"other preprocessing: {name} is {value}, not " in message
    assert "version of this program that made it" in message


# Files


@pytest.mark.parametrize(
    "name",
    ["../secret", "a/b", "/etc/passwd", "..", ".", "", "a\\b", "C:\\x", "C:x", "\\\\host\\share\\x", "nul\0byte"],
)
def test_a_file_name_that_leaves_the_folder(folder: Path, name: str) -> None:
    alter(folder, lambda config: config["files"].update({name: "0" * 64}))
    assert f"lists {name!r}, which is not the name of a file" in refused(folder, folder / CONFIG)


@pytest.mark.parametrize("value", ["0" * 63, "Z" * 64, 7, None, ["0" * 64], "0" * 64 + "\n"])
def test_a_hash_that_is_none(folder: Path, value: object) -> None:
    alter(folder, lambda config: config["files"].update({WEIGHTS: value}))
    assert "not 64 hex digits" in refused(folder, folder / CONFIG)


def test_weights_without_a_hash(folder: Path) -> None:
    alter(folder, lambda config: config["files"].clear())
    assert "no sha256 of model.safetensors" in refused(folder, folder / CONFIG)


@pytest.mark.skipif(os.name == "nt", reason="links need a right that Windows does not give everybody")
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "model.onnx"])
def test_a_link_that_leaves_the_folder(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    (folder / "model.onnx").touch()
    seal(folder, BUNDLE)
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    message = refused(folder, folder / name)
    assert "a link that leads out of the bundle's folder" in message


@pytest.mark.skipif(os.name == "nt", reason="links need a right that Windows does not give everybody")
def test_links_in_a_circle_and_links_that_stay(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "real.safetensors")
    (folder / WEIGHTS).symlink_to(folder / "real.safetensors")
    assert load(folder)[0] == BUNDLE
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / WEIGHTS)
    refused(folder, folder / WEIGHTS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "not a regular file" in refused(folder, folder / name)


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    refused(folder, folder / WEIGHTS)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable here")
def test_a_file_that_cannot_be_read(folder: Path) -> None:
    (folder / WEIGHTS).chmod(0)
    assert "Permission denied" in refused(folder, folder / WEIGHTS)


# Weights


class Trap:
    """Runs code when it is unpickled by anything careless."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("rehashed", [False, True])
def test_a_pickle_in_disguise_is_named_and_never_opened(folder: Path, protocol: int, rehashed: bool) -> None:
    trap = folder.parent / "sprung"
    content = pickle.dumps({"state": Trap(trap), "padding": b"\0" * 3_000_000}, protocol=protocol)
    if rehashed:
        replace_weights(folder, content)
    else:
        (folder / WEIGHTS).write_bytes(content)
    message = refused(folder, folder / WEIGHTS)
    assert "a pickle, which may run code; it was not opened" in message
    assert not trap.exists()


def test_what_torch_saves_is_named_and_never_opened(folder: Path) -> None:
    torch.save(WEIGHTS_SAVED, folder / WEIGHTS)
    replace_weights(folder, (folder / WEIGHTS).read_bytes())
    assert "a zip archive such as torch.save writes, which may run code" in refused(folder, folder / WEIGHTS)


def test_an_old_pickle_without_a_signature_is_not_opened_either(folder: Path) -> None:
    trap = folder.parent / "sprung"
    replace_weights(
        folder, pickle.dumps({"state": Trap(trap), "padding": "x" * len((folder / WEIGHTS).read_bytes())}, protocol=0)
    )
    assert "not valid safetensors" in refused(folder, folder / WEIGHTS)
    assert not trap.exists()


def test_truncated_weights(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        replace_weights(folder, whole[:length])
        message = refused(folder, folder / WEIGHTS)
        assert "truncated" in message or "not valid safetensors" in message


def test_weights_that_are_too_large_are_not_parsed(folder: Path) -> None:
    replace_weights(folder, (folder / WEIGHTS).read_bytes() + b"\0" * 2**21)
    assert re.search(r"more than [\d,]+ bytes", refused(folder, folder / WEIGHTS))


def test_weights_that_were_altered(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert "one of the two was altered" in refused(folder, folder / WEIGHTS)


def test_tensors_that_are_missing_or_too_many(folder: Path) -> None:
    without = {name: tensor for name, tensor in WEIGHTS_SAVED.items() if not name.startswith("head")}
    replace_weights(folder, as_safetensors(without | {"pad": torch.zeros(999)}))
    refused(folder, folder / WEIGHTS)
    assert "missing tensors: 'head.bias', 'head.weight'" in refused(folder)
    extra = WEIGHTS_SAVED | {f"extra.{number}": torch.zeros(1) for number in range(5)}
    replace_weights(folder, as_safetensors(extra))
    assert "unknown tensors: 'extra.0', 'extra.1', 'extra.2' and 2 more" in refused(folder, folder / WEIGHTS)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    features = WEIGHTS_SAVED["head.weight"].shape[1]
    other = WEIGHTS_SAVED | {"head.weight": torch.zeros(features, 3)}
    replace_weights(folder, as_safetensors(other))
    message = refused(folder, folder / WEIGHTS)
    assert f"head.weight is F32 {features} x 3, but its architecture has F32 3 x {features}" in message


def test_weights_of_a_wider_network(folder: Path) -> None:
    replace_weights(folder, as_safetensors(weights(replace(MODEL, width=0.3))))
    assert "block2.branch.0.weight is F32 40 x 16 x 3 x 3, but its architecture has F32 32 x 16" in refused(folder)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "F64"), (torch.int32, "I32")])
def test_a_tensor_of_another_type(folder: Path, dtype: torch.dtype, name: str) -> None:
    replace_weights(folder, as_safetensors(WEIGHTS_SAVED | {"head.bias": torch.zeros(3, dtype=dtype)}))
    assert f"head.bias is {name} 3, but its architecture has F32 3" in refused(folder, folder / WEIGHTS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    replace_weights(folder, as_safetensors(WEIGHTS_SAVED | {"head.bias": torch.tensor([0, value, 0])}))
    assert "head.bias has NaN or infinity" in refused(folder, folder / WEIGHTS)


def test_a_negative_variance(folder: Path) -> None:
    name = "stem.1.running_var"
    replace_weights(folder, as_safetensors(WEIGHTS_SAVED | {name: -WEIGHTS_SAVED[name]}))
    assert f"{name} has a negative variance" in refused(folder, folder / WEIGHTS)


def test_a_header_of_the_wrong_kind(folder: Path) -> None:
    """Well-formed around it: every byte the architecture needs, and the hash that goes with them."""
    size = len((folder / WEIGHTS).read_bytes())
    for header in (b"[]", b'{"a": 1}', b'{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}', b"{" * 5000):
        content = struct.pack("<Q", len(header)) + header
        replace_weights(folder, content + b"\0" * (size - len(content)))
        assert "not valid safetensors" in refused(folder, folder / WEIGHTS)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gives_anything_but_the_bundle_or_a_refusal(folder: Path, data: st.DataObject) -> None:
    """Bits flipped, bytes cut, bytes put in, in either file, with the hash adjusted or not."""
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS]), "file")
    path = folder / name
    whole = {file: (folder / file).read_bytes() for file in (CONFIG, WEIGHTS)}
    content = bytearray(whole[name])
    # Half of the damage goes where the structure is
    places = st.one_of(st.integers(0, min(4000, len(content) - 1)), st.integers(0, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 3), "times")):
        place = min(data.draw(places, "place"), len(content) - 1)
        match data.draw(st.sampled_from(["flip", "cut", "insert"]), "damage"):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7), "bit")
            case "cut":
                del content[max(1, place) :]
            case _:
                content[place:place] = data.draw(st.binary(min_size=1, max_size=9), "bytes")
    try:
        if name == WEIGHTS and data.draw(st.booleans(), "hash adjusted"):
            replace_weights(folder, bytes(content))
        else:
            path.write_bytes(content)
        try:
            bundle, network = load(folder)
        except BundleError as error:
            assert str(error).isprintable()
        else:
            assert isinstance(bundle, Bundle)
            assert all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
            if bytes(content) == whole[name]:
                assert bundle == BUNDLE
    finally:
        for file, original in whole.items():
            (folder / file).write_bytes(original)
