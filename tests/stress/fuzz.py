"""Coverage-guided fuzzing of every loader that reads files which a stranger may have made.

    pip install -e ".[fuzz]"
    python tests/stress/fuzz.py --target pictures --seconds 300

small valid files -> atheris (libFuzzer) cuts, splices and flips them, and keeps what reaches new branches -> a loader.
A loader may return a value or raise its own error in one line. Anything else is a finding: another exception, an error
text with control characters or of more than MAX_MESSAGE characters, more than SLOW seconds, more than MAX_MEMORY.
Only branches in Python code are seen, not those in the C code of Pillow, torch and safetensors.
Each finding is written into --into: its input, and beside it `<name>.txt` with the traceback.
"""

import hashlib
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import atheris
from cyclopts import Parameter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
INSTRUMENTED = ["PIL", "data", "model", "search_space", "tuning", "json", "zipfile"]
"""Packages whose branches guide the fuzzer."""

with atheris.instrument_imports(include=INSTRUMENTED):  # pyright: ignore[reportAttributeAccessIssue]
    import numpy as np
    import torch
    from PIL import Image, features

    from data import DataError, cache, file_checks
    from data.augment import AugmentConfig
    from model import checkpoint, preprocessing
    from model.export import bundle
    from model.network import ModelConfig, MushroomCNN
    from model.preprocessing import FORMATS, PictureError, load_square
    from model.training import TrainingConfig
    from search_space import Config
    from selection.retraining import FORMAT, Winner
    from tests.stress.made_up_studies import made_up_metrics
    from tests.stress.script import run
    from tuning import StudyError
    from tuning.settings import Settings, recall

SLOW = 5.0
"""Seconds that one input may take."""
MAX_MEMORY = 3072
"""MiB that the whole process may take; converting the largest permitted picture to RGB takes 1.5 GiB."""
MAX_MESSAGE = 1500
"""Characters that an error text may have."""

MODEL = ModelConfig(classes=3, width=0.25)
CONFIG = Config(
    image_size=32,
    views=1,
    model=MODEL,
    augment=AugmentConfig(strength=0.5, reuse_originals=False, fresh=True),
    training=TrainingConfig(optimizer="adam", lr=1e-3, schedule="cosine", epochs=3, batch_size=16),
)
SPLIT: dict[str, Any] = {
    "labels": np.array([0, 1, 0, 1]),
    "train": np.array([0, 1]),
    "validation": np.array([2]),
    "test": np.array([3]),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A loader to fuzz."""

    seeds: Callable[[Path], list[bytes]]
    """Makes valid inputs in a folder."""
    load: Callable[[bytes, Path], object]
    """Reads one input; it may write into the folder."""
    expected: tuple[type[Exception], ...]
    """The loader's documented errors."""
    longest: int
    """Bytes of the longest input."""


# --- pictures


def pictures(_: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    found = [_encoded(image, name) for name in FORMATS]
    for mode, name in (("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("L", "JPEG2000")):
        found.append(_encoded(image.convert(mode), name))
    found += [_encoded(image.convert(mode), "TIFF") for mode in ("F", "I;16", "CMYK", "RGBA")]
    for squeezed in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4", "tiff_ccitt"):
        mode = "1" if squeezed in ("group4", "tiff_ccitt") else "RGB"
        found.append(_encoded(image.convert(mode), "TIFF", compression=squeezed))
    for name in ("GIF", "PNG", "WEBP", "TIFF"):
        found.append(_encoded(image, name, save_all=True, append_images=[image.rotate(90)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    found += [_encoded(image, "JPEG", exif=exif, progressive=True), _encoded(image, "MPO", save_all=True)]
    found.append(_encoded(image, "JPEG2000", no_jp2=True))
    return found


def _encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def read_picture(content: bytes, _: Path) -> None:
    """Read a picture as the scan does, then as `predict` and the cache do."""
    content = _signed(content)
    file_checks._check_open_file(io.BufferedReader(io.BytesIO(content)), True)  # pyright: ignore[reportPrivateUsage, reportArgumentType]
    preprocessing.read_picture(io.BytesIO(content))
    load_square(io.BytesIO(content), 16)


def _signed(content: bytes) -> bytes:
    """Give a PNG's chunks correct checksums; otherwise no damage would get past them."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    out, place = bytearray(content[:8]), 8
    while place + 12 <= len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        body = content[place + 4 : place + 8 + size]
        if len(body) < 4 + size:
            break
        out += content[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + size
    return bytes(out + content[place:])


# --- checkpoints


def checkpoints(folder: Path) -> list[bytes]:
    network = MushroomCNN(ModelConfig(classes=2, width=0.25))
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    metrics = made_up_metrics(0, 0.5, [[1, 0], [0, 1]], 1.0)
    head = {name: tensor[:1].clone() for name, tensor in network.state_dict().items() if "head" in name}
    found: list[bytes] = []
    for state in (None, optimizer.state_dict()):
        made = checkpoint.Checkpoint(
            attempt=1,
            job_digest="x",
            history=(metrics,),
            model=head,
            averaged=head if state else None,
            optimizer=state,
        )
        checkpoint.save(folder / "seed", made)
        found.append(_unpacked((folder / "seed").read_bytes()))
    return found


def _unpacked(packed: bytes) -> bytes:
    """Return the members of a zip file one after the other, to be damaged and packed again with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        members = [(one.filename.encode(), archive.read(one)) for one in archive.infolist()]
    return b"Z" + b"".join(struct.pack("<BH", len(name), len(body)) + name + body for name, body in members)


def _packed(content: bytes) -> bytes:
    if not content.startswith(b"Z"):
        return content
    file, place = io.BytesIO(), 1
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w") as archive:  # repeated names
        while place + 3 <= len(content):
            named, size = struct.unpack("<BH", content[place : place + 3])
            name = content[place + 3 : place + 3 + named].decode("latin-1")
            archive.writestr(zipfile.ZipInfo(name), content[place + 3 + named : place + 3 + named + size])
            place += 3 + named + size
    return file.getvalue()


def read_checkpoint(content: bytes, folder: Path) -> None:
    (folder / "last.pt").write_bytes(_packed(content))
    checkpoint.load(folder / "last.pt")


# --- bundles


def bundles(folder: Path) -> list[bytes]:
    described = bundle.Bundle(
        model=MODEL, classes=("a", "b", "c"), image_size=32, temperature=1.5, provenance={"study": "x"}, results=None
    )
    bundle.save(folder, described, MushroomCNN(MODEL).state_dict())
    config, tensors = (folder / bundle.CONFIG).read_bytes(), (folder / bundle.WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", tensors[:8])
    (folder / "tensors").write_bytes(tensors[8 + size :])  # kept out of the inputs, so that they stay small
    header = tensors[: 8 + size]
    return [struct.pack("<I", len(config)) + config + header]


def read_bundle(content: bytes, folder: Path) -> None:
    """Read a description and the header of the weights; the hash is corrected, as no damage gets past a wrong one."""
    (size,) = struct.unpack("<I", content[:4].ljust(4, b"\0"))
    config, header = content[4 : 4 + size], content[4 + size :]
    tensors = header + (folder / "tensors").read_bytes()
    try:
        values = json.loads(config)
        values["files"][bundle.WEIGHTS] = hashlib.sha256(tensors).hexdigest()
        config = json.dumps(values).encode()
    except (ValueError, TypeError, KeyError, RecursionError):  # the description itself is damaged
        pass
    (folder / bundle.CONFIG).write_bytes(config)
    (folder / bundle.WEIGHTS).write_bytes(tensors)
    bundle.load(folder)


# --- configurations, and other files that the program writes for itself


def configs(folder: Path) -> list[bytes]:
    winner = Winner(
        name="trial 3",
        trial=3,
        config=CONFIG.to_dict(),
        pictures="42 pictures",
        trials=5,
        seed=1,
        seed_index=0,
        environment={"torch": "2"},
        epochs=2,
        trained_on=["train", "validation"],
        weights="trials/0003/best.pt",
        temperature=1.2,
        calibration="temperature 1.20, fitted on 6 validation pictures",
        networks="a b",
        validation={"recorded": 0.5},
        results={"top1": 0.5},
    )
    settings = Settings(data="field-guide", test_data=None, pictures=42, storage="postgresql://me:***@host/name")
    written = [CONFIG.to_dict(), {"format": FORMAT, **asdict(winner)}, asdict(settings)]
    found = [bytes([kind]) + json.dumps(values).encode() for kind, values in enumerate(written)]
    image = Image.fromarray(np.zeros((20, 20, 3), np.uint8))
    (folder / "set" / "a").mkdir(parents=True)
    image.save(folder / "set" / "a" / "0.png")
    list(file_checks.check_files(folder / "set", _entries(folder), cache_dir=folder / "cache"))
    (memory,) = (folder / "cache" / "scans").iterdir()
    np.savez(folder / "split.npz", **SPLIT)
    np.save(folder / "8.npy", np.zeros((4, 8, 8, 3), np.uint8))
    found.append(b"\3" + _unpacked(memory.read_bytes()))
    found.append(b"\4" + _unpacked((folder / "split.npz").read_bytes()))
    found.append(b"\5" + (folder / "8.npy").read_bytes())
    return found


def _entries(folder: Path) -> list[file_checks.Entry]:
    inside = folder / "set"
    return list(file_checks.walk(inside, {"a": [inside / "a"]}, within=(inside,)))


def read_config(content: bytes, folder: Path) -> None:
    """Read one of six kinds of files; the first byte says which."""
    kind, content = content[:1], content[1:]
    if kind == b"\0":
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            return
        if isinstance(values, dict):
            Config.from_dict(values)  # pyright: ignore[reportUnknownArgumentType]
    elif kind == b"\1":
        (folder / "retrained.json").write_bytes(content)
        Winner.load(folder)
    elif kind == b"\2":
        (folder / "settings.json").write_bytes(content)
        recall(folder.parent, folder.name)
    elif kind == b"\3":
        (memory,) = (folder / "cache" / "scans").iterdir()
        memory.write_bytes(_packed(content))
        found = file_checks.check_files(folder / "set", _entries(folder), cache_dir=folder / "cache")
        assert len(found) == 1, found
    else:
        digest = cache._digest(SPLIT["labels"], SPLIT)  # pyright: ignore[reportPrivateUsage]
        handle = cache.CacheHandle(directory=folder, fingerprint="f", split=digest, classes=("a", "b"))
        np.savez(folder / f"split-{digest}.npz", **SPLIT)
        np.save(folder / "8.npy", np.zeros((4, 8, 8, 3), np.uint8))
        damaged = folder / ("8.npy" if kind == b"\5" else f"split-{digest}.npz")
        damaged.write_bytes(content if kind == b"\5" else _packed(content))
        cache.open_part(handle, 8, "train")


TARGETS = {
    "pictures": Target(seeds=pictures, load=read_picture, expected=(PictureError,), longest=20_000),
    "checkpoints": Target(
        seeds=checkpoints, load=read_checkpoint, expected=(checkpoint.CheckpointError,), longest=20_000
    ),
    "bundles": Target(seeds=bundles, load=read_bundle, expected=(bundle.BundleError,), longest=20_000),
    "configs": Target(seeds=configs, load=read_config, expected=(ValueError, StudyError, DataError), longest=8_000),
}


class Feeder:
    """Feeds inputs to one target and counts them; the first finding of each kind is written down."""

    def __init__(self, name: str, folder: Path, into: Path) -> None:
        self.name, self.target, self.folder, self.into = name, TARGETS[name], folder, into
        self.inputs, self.accepted = 0, 0
        self.findings: Counter[str] = Counter()
        self.slowest = 0.0

    def feed(self, content: bytes) -> None:
        self.inputs += 1
        began = time.monotonic()
        try:
            self.target.load(content, self.folder)
            self.accepted += 1
        except self.target.expected as error:
            text = str(error)
            if not text.isprintable() or len(text) > MAX_MESSAGE:
                finding = AssertionError(f"error text is not one short printable line: {text[:300]!r}")
                self.note(finding.with_traceback(error.__traceback__), content)
        except Exception as finding:
            self.note(finding, content)
        seconds = time.monotonic() - began
        self.slowest = max(self.slowest, seconds)
        if seconds > SLOW:
            self.note(TimeoutError(f"{seconds:.1f} s"), content)

    def note(self, finding: BaseException, content: bytes) -> None:
        last = traceback.extract_tb(finding.__traceback__)[-1:]
        place = f"{Path(last[0].filename).name}:{last[0].lineno}" if last else ""
        kind = f"{type(finding).__name__} {place}"
        self.findings[kind] += 1
        if self.findings[kind] == 1:
            path = self.into / f"{self.name}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
            path.write_bytes(content)
            text = "".join(traceback.format_exception(finding))
            path.with_suffix(".txt").write_text(text, encoding="utf-8", errors="backslashreplace")

    def print_totals(self) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"{self.name}: {self.inputs:,} inputs, {self.accepted:,} accepted, {sum(self.findings.values()):,} "
            f"findings of {len(self.findings)} kinds, slowest {self.slowest:.2f} s, {memory:,} MiB at most",
            *(f"  {count:>8,} x {kind}" for kind, count in self.findings.most_common()),
            sep="\n",
            flush=True,
        )


def fuzz(name: str, seconds: int, into: Path, seed: int) -> None:
    """Fuzz one target; libFuzzer ends the process, so that this never returns."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        place, corpus = Path(folder) / "work", Path(folder) / "corpus"
        place.mkdir()
        corpus.mkdir()
        for number, content in enumerate(TARGETS[name].seeds(place)):
            (corpus / f"{number:03d}").write_bytes(content)
        feeder = Feeder(name, place, into)
        for path in sorted(corpus.iterdir()):
            feeder.feed(path.read_bytes())
        assert feeder.accepted == feeder.inputs, f"the loader rejects valid inputs: {feeder.findings}"
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={TARGETS[name].longest}",
            f"-rss_limit_mb={MAX_MEMORY}",
            f"-artifact_prefix={into}/{name}-",
            f"-seed={seed + 1}",
            "-timeout=60",
            "-print_final_stats=1",
            "-verbosity=1",
            "-reload=0",
        ]
        began = time.monotonic()

        def one(content: bytes) -> None:
            feeder.feed(content)
            if time.monotonic() - began > seconds:
                feeder.print_totals()
                os._exit(0)

        print(f"{name}: {feeder.inputs} valid inputs, {features.version('pil')}", flush=True)
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()


def main(
    *,
    target: Literal["pictures", "checkpoints", "bundles", "configs"],
    seconds: int = 300,
    seed: int = 0,
    into: Path = Path("fuzz-findings"),
    here: Annotated[bool, Parameter(show=False)] = False,
) -> None:
    """Fuzz one target in a process of its own, and report how that ended, even by a signal.

    Parameters
    ----------
    into
        Folder for the findings.
    """
    into.mkdir(parents=True, exist_ok=True)
    if here:
        fuzz(target, seconds, into, seed)
    done = subprocess.run([sys.executable, *sys.argv, "--here"])
    if done.returncode:
        print(f"{target}: the process ended with {done.returncode}; its last input is in {into}")
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    run(main)
