"""The bundle: an exported network on disk, as weights and a description without code, read as untrusted input.

    save:  Bundle, weights -> model.safetensors -> `seal`: config.json with the sha256 of every file beside it
    load:  config.json -> checked Bundle -> model.safetensors -> checked tensors -> MushroomCNN

A bundle may come from anybody, so only JSON and plain tensors are ever read: no pickle, no `torch.load`. Each file is
read once, and the bytes that were hashed are the bytes that are parsed. The description's names, shapes, types and
sizes are checked before a network is built from it.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn, cast

import safetensors
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model import plain_json
from model.files import open_regular, printable, replacing_on_disk, why
from model.network import ModelConfig, MushroomCNN
from model.plain_json import duplicate, few, short
from model.preprocessing import MEAN, STD, VERSION, Ranges, check_ranges
from model.strangers import Familiar

FORMAT = "mushroom-study bundle 4"
"""Format version, the first entry of every config.json; raise it when older programs would misread newer bundles. In
version 1 there were no ranges, in version 2 no answers were called sure, in version 3 no pictures strangers."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

IMAGE_SIZES = (16, 4096)
"""Smallest and largest side of the network's input, in pixels."""
TEMPERATURES = (1e-3, 1e3)
"""Lowest and highest plausible temperature: beyond them all probabilities would be 0 or 1, or all equal."""

STRANGENESS = (-1e9, 1e9)
"""Lowest and highest plausible strangeness of a familiar picture, in standard deviations."""

MAX_HEADER = 2**20
"""Bytes that model.safetensors may have besides its tensors: names, shapes, and other tools' metadata."""

PREPROCESSING = {
    "version": VERSION,
    "orientation": "upright, according to EXIF",
    "colour": "8-bit RGB; more bits are scaled by the ranges; transparent areas become white",
    "resize": "shorter side to image_size pixels: bicubic (a = -0.5), antialiased, rounded to 8 bits",
    "crop": "central square",
    "scale": "(value / 255 - mean) / std",
    "mean": list(MEAN),
    "std": list(STD),
}
"""Description of the preprocessing in config.json; a bundle with another version, mean or std is refused."""


class BundleError(Exception):
    """A bundle cannot be read or written; the message is one line: the symptom, the path, the values and the fix."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything about an exported network except its weights; raises ValueError for impossible values."""

    model: ModelConfig
    """Architecture of the network."""
    classes: tuple[str, ...]
    """Class names, unique and not empty, in the order of the logits."""
    image_size: int
    """Side of the square picture that the network sees, 16 to 4096 pixels."""
    ranges: Ranges = field(default_factory=dict[str, list[float]])
    """Ranges by which pictures with more than 8 bits are scaled, as in training."""
    temperature: float
    """Divisor of the logits with which softmax gives calibrated probabilities; 1 if they could not be calibrated."""
    sure: float | None = None
    """Lowest probability of an answer that is called sure, 0 to 1; None if none is."""
    strangest: float | None = None
    """Highest strangeness of a picture that is not called a stranger; None if no picture is called one. Otherwise the
    network has a `model.strangers.Familiar`."""
    provenance: dict[str, Any]
    """Provenance as plain JSON: study, trial, data fingerprint, versions and so on; shown but not used."""
    results: dict[str, Any] | None
    """Test results, as `model.export.card.Results`; None for a network that was never tested."""

    def __post_init__(self) -> None:
        for name in cast(tuple[object, ...], self.classes):
            if not isinstance(name, str) or not name:
                raise ValueError(f"a class is named {short(name)}, which is empty or not text")
        if (name := duplicate(self.classes)) is not None:
            raise ValueError(f"two classes are named {short(name)}")
        if len(self.classes) != self.model.classes:
            raise ValueError(f"there are {len(self.classes)} class names for {self.model.classes} logits")
        for name, value, (low, high) in (
            ("image_size", self.image_size, IMAGE_SIZES),
            ("temperature", self.temperature, TEMPERATURES),
            ("sure", self.sure, (0, 1)),
            ("strangest", self.strangest, STRANGENESS),
        ):
            if value is not None and not low <= value <= high:
                raise ValueError(f"`{low:g} <= {name} <= {high:g}` must hold, but got {value}")
        check_ranges(self.ranges)

    @property
    def calibration(self) -> str:
        """How the temperature was found, or why the probabilities could not be calibrated, as the provenance says."""
        unrecorded = f"temperature {self.temperature:.2f}" if self.temperature != 1 else "not calibrated"
        return str(self.provenance.get("calibration", unrecorded))

    @property
    def sure_answers(self) -> str:
        """What a sure answer is, or why no answer is called sure, as the provenance says."""
        return str(self.provenance.get("sure answers", "no answer is called sure: the network was not tested for that"))

    @property
    def strangers(self) -> str:
        """Which pictures are called strangers, or why none is, as the provenance says."""
        unknown = "no picture is called a stranger: the network was not tested for that"
        return str(self.provenance.get("strangers", unknown))


@dataclass(frozen=True, kw_only=True)
class _Description:
    """Contents of config.json, in this order."""

    format: str
    classes: list[Any]
    architecture: ModelConfig
    image_size: int
    preprocessing: dict[str, Any]
    temperature: float
    provenance: dict[str, Any]
    results: dict[str, Any] | None
    files: dict[str, Any]
    """SHA-256 of each other file in the folder, by name."""
    ranges: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    sure: float | None = None
    strangest: float | None = None


def save(folder: Path, bundle: Bundle, weights: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors into an existing folder; `weights` is the network's `state_dict()`.

    The weights are checked by `load`, not here. Raises OSError if a file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write(folder / WEIGHTS, to_safetensors(tensors))
    seal(folder, bundle)


def seal(folder: Path, bundle: Bundle) -> None:
    """Write or rewrite config.json with the SHA-256 of every other file in the folder. Raises OSError."""
    files = sorted(path for path in folder.iterdir() if path.name != CONFIG)
    description = _Description(
        format=FORMAT,
        classes=list(bundle.classes),
        architecture=bundle.model,
        image_size=bundle.image_size,
        preprocessing=PREPROCESSING,
        temperature=bundle.temperature,
        provenance=bundle.provenance,
        results=bundle.results,
        files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        ranges={kind: list(ends) for kind, ends in bundle.ranges.items()},
        sure=bundle.sure,
        strangest=bundle.strangest,
    )
    # A folder's name need not be UTF-8; `backslashreplace` writes what is not as JSON's own escape.
    text = _readable(asdict(description)) + "\n"
    write(folder / CONFIG, text.encode("utf-8", errors="backslashreplace"))


def load(folder: Path) -> tuple[Bundle, MushroomCNN]:
    """Return the description and the network: in evaluation mode, on the CPU, float32, channels_last.

    Raises BundleError if there is no bundle, or if it is damaged, altered, not this program's, or made for other
    preprocessing.
    """
    bundle, hashes = _description(folder)
    network = empty(bundle)
    expected = network.state_dict()
    needed = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    path = folder / WEIGHTS
    content = _read(folder, WEIGHTS, needed + MAX_HEADER)
    if len(content) < needed:
        _refuse(path, f"truncated: {len(content):,} bytes, but its architecture needs {needed:,}")
    if hashlib.sha256(content).hexdigest() != hashes[WEIGHTS]:
        _refuse(path, f"its sha256 is not the one in {CONFIG}: one of the two was altered")
    network.load_state_dict(_tensors(path, content, expected), assign=True)
    return bundle, network.eval().to(memory_format=torch.channels_last)


def empty(bundle: Bundle) -> MushroomCNN:
    """Return a network on the meta device, with shapes but no memory, for `load_state_dict(..., assign=True)` to fill.

    No random number is drawn.
    """
    with torch.device("meta"), _Unfilled():
        network = MushroomCNN(bundle.model)
        if bundle.strangest is not None:
            network.familiar = Familiar(network.head.out_features, network.head.in_features)
        return network


class _Unfilled(TorchFunctionMode):
    """Skips weight initialisation: filling meta tensors has no effect, but makes torch import its compiler, which takes
    2 s."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


def verify(folder: Path) -> None:
    """Raise BundleError unless config.json lists every other file of the folder with its SHA-256."""
    _, hashes = _description(folder)
    there = {path.name for path in folder.iterdir()} - {CONFIG}
    if there != hashes.keys():
        _refuse(folder / CONFIG, f"its list of files does not match the folder: {few(there ^ hashes.keys())}")
    for name, sha256 in hashes.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
            _refuse(folder / name, f"its sha256 is not the one in {CONFIG}")


def write(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk. Raises OSError."""
    with replacing_on_disk(path) as file:
        file.write(content)


# --- config.json


def _description(folder: Path) -> tuple[Bundle, dict[str, str]]:
    """Return the checked contents of config.json, and the SHA-256 of each file by name."""
    path = folder / CONFIG
    content = _read(folder, CONFIG, plain_json.MAX_BYTES)
    try:
        values = plain_json.parse(content)
        if isinstance(values, dict):
            _check_format(path, cast(dict[str, Any], values).get("format"))
        found = plain_json.fill(_Description, values)
        _check_preprocessing(path, found.preprocessing)
        _check_files(folder, found.files)
        bundle = Bundle(
            model=found.architecture,
            classes=tuple(found.classes),
            image_size=found.image_size,
            temperature=found.temperature,
            provenance=found.provenance,
            results=found.results,
            ranges=found.ranges,
            sure=found.sure,
            strangest=found.strangest,
        )
    except ValueError as error:  # from UTF-8, JSON, numbers with thousands of digits, or a rule of the dataclasses
        _refuse(path, why(error))
    return bundle, found.files


def _check_format(path: Path, found: object) -> None:
    kind, number = FORMAT.rsplit(maxsplit=1)
    version = re.fullmatch(rf"{kind} (\d{{1,9}})", found) if isinstance(found, str) else None
    if version and 1 <= int(version[1]) <= int(number):
        return
    if version and int(version[1]) > int(number):
        fix = "update this program, or export the bundle again with this version"
        _refuse(path, f"made by a newer version of this program: its format is {found!r}, not {FORMAT!r}", fix)
    _refuse(path, f"not a bundle: its format is {short(found)}, not {FORMAT!r}")


def _check_preprocessing(path: Path, found: dict[str, Any]) -> None:
    for name in ("version", "mean", "std"):
        if found.get(name) != PREPROCESSING[name]:
            _refuse(
                path,
                f"made for other preprocessing: {name} is {short(found.get(name))}, not {PREPROCESSING[name]}",
                "use the version of this program that made it, or export it again",
            )


def _check_files(folder: Path, hashes: dict[str, Any]) -> None:
    path = folder / CONFIG
    for name, sha256 in hashes.items():
        if not _is_plain(name):
            _refuse(path, f"lists {short(name)}, which is not the name of a file in its folder")
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            _refuse(path, f"gives {short(sha256)} as the sha256 of {short(name)}, not 64 hex digits")
        _inside(folder, name)
    if WEIGHTS not in hashes:
        _refuse(path, f"has no sha256 of {WEIGHTS}")


def _readable(value: Any, indent: str = "") -> str:
    """Return JSON with one entry per line, but a list of plain values, such as a matrix row, on a single line."""
    items: Iterable[str] = ()
    if isinstance(value, dict) and value:
        opening, closing = "{}"
        named = cast(dict[str, Any], value)
        items = [f"{json.dumps(name, ensure_ascii=False)}: {_readable(named[name], indent + '  ')}" for name in named]
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in cast(list[Any], value)):
        opening, closing = "[]"
        items = [_readable(item, indent + "  ") for item in cast(list[Any], value)]
    else:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return f"{opening}\n" + ",\n".join(f"{indent}  {item}" for item in items) + f"\n{indent}{closing}"


# --- files and tensors


def _read(folder: Path, name: str, limit: int) -> bytes:
    """Return a file's content, up to `limit` bytes; refuse pipes, devices, pickles and files outside the folder."""
    path = _inside(folder, name)
    try:
        # The limit is checked last, as the kind of a wrong file says more than its size
        with open_regular(path.resolve(), sys.maxsize, follow_links=False) as file:
            size = os.fstat(file.fileno()).st_size  # Python reserves memory for everything that it is asked to read
            content = file.read(min(limit, size) + 1)
    except (FileNotFoundError, NotADirectoryError):
        fix = "export one with `python study.py export`, or name another folder with --model FOLDER"
        raise BundleError(f"no bundle in {printable(folder)} ({name} is missing): {fix}") from None
    except PermissionError as error:
        _refuse(path, why(error), "allow this user to read it")
    except OSError as error:
        _refuse(path, why(error))
    if kind := _dangerous_kind(content):
        _refuse(path, f"{kind}, which may run code; it was not opened")
    if len(content) > limit:
        _refuse(path, f"more than {limit:,} bytes")
    return content


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a bundle's file. Raises BundleError for a link that leads out of the folder."""
    path = folder / name
    try:
        stays = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle; which of the two depends on Python's version
        stays = False
    if not stays:
        _refuse(path, "a link that leads out of the bundle's folder", "replace it with the file itself")
    return path


def _is_plain(name: str) -> bool:
    """Whether a name is a plain file name on every system: no folder, no drive, no '..'."""
    ours = name not in ("", ".", "..") and "\0" not in name
    return ours and PurePosixPath(name).name == PureWindowsPath(name).name == name


def _dangerous_kind(content: bytes) -> str | None:
    """Return the dangerous kind of file, such as a pickle, that this content really is; None if it is none."""
    if content[8:9] == b"{":
        return None  # safetensors: its header's length comes first, and one of 640 bytes begins as a pickle does
    if content.startswith(b"PK\x03\x04"):
        return "a zip archive such as torch.save writes"
    if re.match(rb"\x80[\x02-\x05]", content):
        return "a pickle"
    return None


def _tensors(path: Path, content: bytes, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file: finite, with the names, shapes and types of `expected`."""
    try:
        found = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        _refuse(path, f"not valid safetensors: {printable(str(error))[:160]}")
    for problem, names in (("missing", expected.keys() - found.keys()), ("unknown", found.keys() - expected.keys())):
        if names:
            _refuse(path, f"{problem} tensors: {few(names)}")
    tensors: dict[str, Tensor] = {}
    for name, like in expected.items():
        kind = f"{_TYPES[like.dtype]} {_by(like.shape)}"
        if (given := f"{found[name]['dtype']} {_by(found[name]['shape'])}") != kind:
            _refuse(path, f"{name} is {given}, but its architecture has {kind}")
        tensor = torch.frombuffer(found[name]["data"], dtype=like.dtype).reshape(like.shape)
        if not bool(torch.isfinite(tensor).all()):
            _refuse(path, f"{name} has NaN or infinity")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            _refuse(path, f"{name} has a negative variance, {float(tensor.min()):g}")
        tensors[name] = tensor
    return tensors


_TYPES = {torch.float32: "F32", torch.int64: "I64"}
"""Types in a network's state and their names in safetensors; the integers are batch norm's batch counts."""


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _refuse(path: Path, problem: str, fix: str = "export or download the bundle again") -> NoReturn:
    raise BundleError(f"cannot load {printable(path)} ({problem}): {fix}")
