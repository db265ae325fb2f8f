"""The exported winner on the disk: weights and a description, both inert, written and read with suspicion.

    save:  Bundle, weights -> model.safetensors -> `seal`: config.json with the sha256 of every file beside it
    load:  config.json -> checked Bundle -> model.safetensors -> checked tensors -> MushroomCNN

A bundle may come from anybody, so nothing but JSON and plain tensors is ever read: no pickle, no `torch.load`. Each
file is read once, and the bytes that were hashed are the bytes that are parsed. What the description promises - names,
shapes, types, sizes - is checked before a network is made of it.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn, cast

import safetensors
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model import plain_json
from model.files import printable
from model.network import ModelConfig, MushroomCNN
from model.plain_json import short, twice
from model.preprocessing import MEAN, STD, VERSION

FORMAT = "mushroom-study bundle 1"
"""First entry of every config.json; the number rises when an older program could no longer read a bundle rightly."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

IMAGE_SIZES = (16, 4096)
"""Pixels, least and most."""
TEMPERATURES = (1e-3, 1e3)
"""Beyond these a calibration has failed: all probabilities would be 0 or 1, or all the same."""

MAX_CONFIG = 4 * 2**20
"""Bytes of config.json: a thousand classes with their confusion matrix have room."""
MAX_HEADER = 2**20
"""Bytes of model.safetensors beside its tensors: names, shapes, and whatever other tools note there."""


class BundleError(Exception):
    """A bundle that cannot be read or made; one line: the rule, the values, the path, the way out."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What must be known beside the weights; a `ValueError` names the rule that a value breaks."""

    model: ModelConfig
    """The architecture."""
    classes: tuple[str, ...]
    """Names, unique and not empty, in the order of the logits."""
    image_size: int
    """Side in pixels of the square that the network sees, 16 to 4096."""
    temperature: float
    """Divides the logits, so that softmax gives calibrated probabilities; 1 where nothing was fitted."""
    provenance: dict[str, Any]
    """Where it comes from, as plain JSON: study, trial, data fingerprint, versions, …; shown, and never acted upon."""
    results: dict[str, Any] | None
    """What the one look at the test part gave, as `model.export.card.Results`; None: never tested."""

    def __post_init__(self) -> None:
        for name in cast(tuple[object, ...], self.classes):
            if not isinstance(name, str) or not name:
                raise ValueError(f"every class needs a name, but `classes` has {short(name)}")
        if (name := twice(self.classes)) is not None:
            raise ValueError(f"no two classes may share a name, but `classes` has {short(name)} twice")
        if len(self.classes) != self.model.classes:
            raise ValueError(
                f"`classes` must name every logit, but has {len(self.classes)} names for {self.model.classes} logits"
            )
        least, most = IMAGE_SIZES
        if not least <= self.image_size <= most:
            raise ValueError(f"`{least} <= image_size <= {most}` must hold, but got {self.image_size}")
        cold, hot = TEMPERATURES
        if not cold <= self.temperature <= hot:
            raise ValueError(f"`{cold:g} <= temperature <= {hot:g}` must hold, but got {self.temperature}")


def save(folder: Path, bundle: Bundle, weights: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors into an existing folder; `weights` is the network's `state_dict()`.

    Nothing is checked that `load` checks. Raises OSError where it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write(folder / WEIGHTS, to_safetensors(tensors))
    seal(folder, bundle)


def seal(folder: Path, bundle: Bundle) -> None:
    """(Re)write config.json with the sha256 of every other file in the folder. Raises OSError."""
    files = sorted(path for path in folder.iterdir() if path.name != CONFIG)
    description = {
        "format": FORMAT,
        "classes": list(bundle.classes),
        "architecture": asdict(bundle.model),
        "image_size": bundle.image_size,
        "preprocessing": {
            "version": VERSION,
            "orientation": "upright, as EXIF says",
            "colour": "RGB of 8 bits; transparency is laid over white",
            "resize": "the shorter side to image_size pixels: bicubic (a = -0.5), antialiased, rounded to 8 bits",
            "crop": "the central square",
            "scale": "(value / 255 - mean) / std",
            "mean": list(MEAN),
            "std": list(STD),
        },
        "temperature": bundle.temperature,
        "provenance": bundle.provenance,
        "results": bundle.results,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    # A folder's name need not be UTF-8; `backslashreplace` writes what is not as JSON's own escape.
    text = _readable(description) + "\n"
    write(folder / CONFIG, text.encode("utf-8", errors="backslashreplace"))


def load(folder: Path) -> tuple[Bundle, MushroomCNN]:
    """The description and the network: in evaluation mode, on the CPU, float32, channels_last.

    Raises BundleError: no bundle there, or one that is torn, foreign, altered, or made for other preprocessing.
    """
    bundle, hashes = _description(folder)
    network = empty(bundle.model)
    expected = network.state_dict()
    needed = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    path = folder / WEIGHTS
    content = _read(folder, WEIGHTS, needed + MAX_HEADER)
    if len(content) < needed:
        _refuse(path, f"have {needed:,} bytes or more for its architecture", f"has {len(content):,}: truncated")
    if hashlib.sha256(content).hexdigest() != hashes[WEIGHTS]:
        _refuse(path, f"have the sha256 that {CONFIG} gives", "has another: one of the two was altered")
    network.load_state_dict(_tensors(path, content, expected), assign=True)
    return bundle, network.eval().to(memory_format=torch.channels_last)


def empty(model: ModelConfig) -> MushroomCNN:
    """A network on the meta device: shapes and types without memory, to be filled by `load_state_dict(…, assign=True)`.

    No random number is drawn.
    """
    with torch.device("meta"), _Unfilled():
        return MushroomCNN(model)


class _Unfilled(TorchFunctionMode):
    """Leaves out the initial weights: filling meta tensors does nothing, but torch imports its compiler first, 2 s."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


def verify(folder: Path) -> None:
    """Raise BundleError unless config.json names every file of the folder with its sha256."""
    _, hashes = _description(folder)
    there = {path.name for path in folder.iterdir()} - {CONFIG}
    if there != hashes.keys():
        names = ", ".join(map(short, sorted(there ^ hashes.keys())))
        _refuse(folder / CONFIG, "list the files beside it", f"and the folder differ in {names}")
    for name, sha256 in hashes.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
            _refuse(folder / name, f"have the sha256 that {CONFIG} gives", "has another")


def write(path: Path, content: bytes) -> None:
    """Write a file and see it safe on the disk; its folder is renamed when all of it is there. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


# --- config.json

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "classes": list,
    "architecture": dict,
    "image_size": int,
    "preprocessing": dict,
    "temperature": (float, int),
    "provenance": dict,
    "results": (dict, type(None)),
    "files": dict,
}
_ARCHITECTURE: dict[str, type | tuple[type, ...]] = {
    "classes": int,
    "width": (float, int),
    "stride_pattern": str,
    "dilation_pattern": str,
    "pooling": str,
    "dropout": (float, int),
}
assert _ARCHITECTURE.keys() == {field.name for field in fields(ModelConfig)}


def _description(folder: Path) -> tuple[Bundle, dict[str, str]]:
    """What config.json says, checked; and the sha256 of each file by name."""
    path = folder / CONFIG
    contents = _parse(path, _read(folder, CONFIG, MAX_CONFIG))
    _check_format(path, contents.get("format"))
    _check_fields(path, "", contents, _FIELDS)
    architecture = contents["architecture"]
    _check_fields(path, "architecture.", architecture, _ARCHITECTURE)
    _check_preprocessing(path, contents["preprocessing"])
    hashes: dict[str, str] = contents["files"]
    _check_files(folder, hashes)
    try:
        bundle = Bundle(
            model=ModelConfig(**architecture),
            classes=tuple(contents["classes"]),
            image_size=contents["image_size"],
            temperature=contents["temperature"],
            provenance=contents["provenance"],
            results=contents["results"],
        )
    except ValueError as error:
        raise BundleError(
            f"a bundle's {CONFIG} must keep its rules, but in {printable(path)} {str(error)[:200]}; export it again"
        ) from error
    return bundle, hashes


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        contents = plain_json.parse(content)
    except ValueError as error:  # of UTF-8, of JSON, of numbers with thousands of digits, …
        _refuse(path, "be JSON", f"is not: {printable(str(error))[:160]}")
    if not isinstance(contents, dict):
        _refuse(path, "be a JSON object", f"is of type {type(contents).__name__}")
    return cast(dict[str, Any], contents)


def _check_format(path: Path, found: object) -> None:
    if found == FORMAT:
        return
    kind, number = FORMAT.rsplit(maxsplit=1)
    newer = re.fullmatch(rf"{kind} (\d{{1,9}})", found) if isinstance(found, str) else None
    if newer and int(newer[1]) > int(number):
        raise BundleError(
            f"this program reads {FORMAT!r}, but {printable(path)} says {found!r}: made by a newer version; "
            "update this program, or export the bundle again with it"
        )
    _refuse(path, f"say {FORMAT!r} as its format", f"says {short(found)}: it is of something else")


def _check_fields(path: Path, prefix: str, values: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Exactly these names, each with a value of its type; `type`, not `isinstance`, as True is no number."""
    if missing := kinds.keys() - values.keys():
        _refuse(path, "have all its fields", f"lacks {_few(prefix + name for name in missing)}")
    if extra := values.keys() - kinds.keys():
        _refuse(path, "have no other fields than its own", f"has {_few(prefix + name for name in extra)}")
    for name, kind in kinds.items():
        if type(values[name]) not in (kind if isinstance(kind, tuple) else (kind,)):
            _refuse(path, "have fields of the right type", f"has {short(values[name])} as '{prefix}{name}'")


def _check_preprocessing(path: Path, found: dict[str, Any]) -> None:
    ours = {"version": VERSION, "mean": list(MEAN), "std": list(STD)}
    for name, value in ours.items():
        if found.get(name) != value:
            raise BundleError(
                f"a bundle's pictures must be prepared as this program does it, with {name} {value}, but "
                f"{printable(path)} has {name} {short(found.get(name))}; use the program's version that made it, "
                "or export it again"
            )


def _check_files(folder: Path, hashes: dict[str, Any]) -> None:
    path = folder / CONFIG
    for name, sha256 in hashes.items():
        if not _is_plain(name):
            _refuse(path, "name files of its own folder only", f"names {short(name)}")
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            _refuse(path, "give the sha256 of every file in 64 hex digits", f"gives {short(sha256)}")
        _inside(folder, name)
    if WEIGHTS not in hashes:
        _refuse(path, f"give the sha256 of {WEIGHTS}", "does not")


def _readable(value: Any, indent: str = "") -> str:
    """JSON as a person writes it: an entry a line, but a list of plain values - a row of a matrix - in one."""
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
    """A file's bytes, at most `limit`; nothing outside the folder, no pipe, no device, no pickle."""
    path = _inside(folder, name)
    flags = (getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"))  # each system has some
    try:
        with os.fdopen(os.open(path.resolve(), os.O_RDONLY | sum(flags)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                _refuse(path, "be an ordinary file", "is not")
            # Python makes room for all that is asked for, so that is not more than there is
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"a bundle is a folder with {CONFIG} and {WEIGHTS}, but there is no {printable(path)}; "
            "`python study.py export` makes one, `--model FOLDER` names another"
        ) from error
    except OSError as error:
        raise BundleError(
            f"a bundle's files must be readable, but {printable(path)} is not: {error.strerror}; mend its rights"
        ) from error
    if disguise := _disguise(content):
        _refuse(path, "hold tensors and JSON alone", f"is {disguise}, which may run code; it was not opened")
    if len(content) > limit:
        _refuse(path, f"have at most {limit:,} bytes", "has more")
    return content


def _inside(folder: Path, name: str) -> Path:
    """The path of a bundle's file. Raises BundleError for a link that leads out of the folder."""
    path = folder / name
    try:
        stays = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle; which of the two depends on Python's version
        stays = False
    if not stays:
        raise BundleError(
            f"a bundle's files must lie in its folder, but {printable(path)} is a link that leaves it; "
            "put the file itself there"
        )
    return path


def _is_plain(name: str) -> bool:
    """Whether a name is a file's own on every system: no folder, no drive, no '..'."""
    ours = name not in ("", ".", "..") and "\0" not in name
    return ours and PurePosixPath(name).name == PureWindowsPath(name).name == name


def _disguise(content: bytes) -> str | None:
    """What a file is that should be JSON or safetensors, if it is one of the kinds that are dangerous to open."""
    if content[8:9] == b"{":
        return None  # safetensors: after a header's length, which for 640 bytes begins as a pickle does
    if content.startswith(b"PK\x03\x04"):
        return "a zip archive such as torch.save writes"
    if re.match(rb"\x80[\x02-\x05]", content):
        return "a pickle"
    return None


def _tensors(path: Path, content: bytes, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which must have the names, shapes and types of `expected`, and be finite."""
    try:
        found = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        _refuse(path, "be whole safetensors", f"is not: {printable(str(error))[:160]}")
    if missing := expected.keys() - found.keys():
        _refuse(path, "have its architecture's tensors", f"lacks {_few(missing)}")
    if extra := found.keys() - expected.keys():
        _refuse(path, "have no other tensors than its architecture's", f"has {_few(extra)}")
    tensors: dict[str, Tensor] = {}
    for name, like in expected.items():
        shape = tuple(found[name]["shape"])
        if shape != tuple(like.shape):
            _refuse(path, f"hold {name} as {_by(like.shape)}, as its architecture has it", f"has {_by(shape)}")
        if found[name]["dtype"] != _TYPES[like.dtype]:
            _refuse(path, f"hold {name} as {_TYPES[like.dtype]}", f"has {found[name]['dtype']}")
        tensor = torch.frombuffer(found[name]["data"], dtype=like.dtype).reshape(shape)
        if not bool(torch.isfinite(tensor).all()):
            _refuse(path, "hold finite numbers", f"has NaN or infinity in {name}")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            _refuse(path, "hold variances of 0 or more", f"has {float(tensor.min()):g} in {name}")
        tensors[name] = tensor
    return tensors


_TYPES = {torch.float32: "F32", torch.int64: "I64"}
"""Of a network's state, as safetensors calls them; the whole numbers are batch norm's counts of batches."""


# --- words


def _refuse(path: Path, rule: str, found: str) -> NoReturn:
    """`rule` is what the file must do, `found` what it does instead."""
    raise BundleError(
        f"a bundle's {printable(path.name)} must {rule}, but {printable(path)} {found}; export or fetch it again"
    )


def _few(names: Iterable[str]) -> str:
    listed = [short(name) for name in sorted(names)]
    return ", ".join(listed[:3]) + f" and {len(listed) - 3} more" * (len(listed) > 3)


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
