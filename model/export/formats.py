"""The bundle in formats that other programs run, and the proof that they compute what the network computes.

    publish:  save -> load -> `export` -> card -> seal -> verify -> rename into place
    export:   network -> torch.export -> model.pt2 -> torch.onnx -> model.onnx -> each format read in a fresh process
                                                                 -> model-any-size.onnx, with the resize inside

The exporters and the readers run in processes of their own: what they print, warn of or change stays there, a crash is
an error like any other, and each format is read as a stranger would read it.
"""

import copy
import glob
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from model.export.bundle import CONFIG, FORMAT, WEIGHTS, Bundle, BundleError, empty, load, save, seal, verify, write
from model.export.card import Latency, Parity, card
from model.files import printable
from model.network import MushroomCNN
from model.preprocessing import MAX_PIXELS, MIN_SIDE, normalise, to_square

TORCH = "model.pt2"
ONNX = "model.onnx"
ANY_SIZE = "model-any-size.onnx"
CARD = "README.md"
NAMES = frozenset({CONFIG, WEIGHTS, TORCH, ONNX, ANY_SIZE, CARD})
"""What a published folder holds."""

TOLERANCE = 1e-4
"""Largest allowed difference of a log-probability. Sums in another order made 1e-6 with logits of a few units and 3e-5
with logits thirty times as large, of which float32 has that many digits."""
GREY_LEVELS = 1
"""Of 255: largest allowed difference of a pixel from Pillow's resize across, then down. Its sums are of whole numbers,
the graph's of float32, so that a value between two levels may be rounded to either."""
LEAST = 1e-12
"""Smaller probabilities are taken for this one: their logarithms say nothing that anybody acts on."""
SOME = 7
"""The middle one of the three batch sizes that are compared: neither one, nor all, nor a power of two."""

SIZES = 16
"""Pictures, each of another size, that the graph with the resize is compared on."""

OPSET = 18
"""Of ONNX: the oldest that torch's exporter writes without converting, which the most programs read."""

ABANDONED = 3600
"""Seconds after which a temporary folder that nobody writes to is what a killed process left."""

ROOT = Path(__file__).resolve().parent.parent

Pictures = npt.NDArray[np.uint8]


class Deployed(nn.Module):
    """Pictures as they are stored, uint8 (N, S, S, 3), to calibrated probabilities, float32 (N, classes).

    What model.pt2 and model.onnx hold: all that follows the resize, so that no other program repeats it differently.
    """

    def __init__(self, network: MushroomCNN, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.softmax(self.network(normalise(pictures)) / self.temperature, dim=1)


class AnySize(nn.Module):
    """One upright picture, uint8 (1, H, W, 3), to probabilities (1, classes) and to the square they were made of.

    The square, uint8 (1, S, S, 3), is `across_then_down`'s: Pillow's bicubic resize is a matrix per direction, whose
    rows are the cubic's values at the pixels around each result, and rounding after each of the two.
    """

    def __init__(self, deployed: Deployed, size: int) -> None:
        super().__init__()
        self.deployed = deployed
        self.size = size

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        height, width = (torch.ones_like(picture[0, ..., 0].sum(axis), dtype=torch.float64).sum() for axis in (1, 0))
        side = torch.minimum(height, width)
        down, right = (self._taps(picture.shape[1], height, side), self._taps(picture.shape[2], width, side))
        maps = picture[0].permute(2, 0, 1).to(torch.float32)
        for step in (lambda maps: maps @ right.T, lambda maps: down @ maps):
            maps = torch.floor(torch.clamp(step(maps), 0, 255) + 0.5)
        square = maps.permute(1, 2, 0)[None].to(torch.uint8)
        return self.deployed(square), square

    def _taps(self, pixels: int, length: Tensor, side: Tensor) -> Tensor:
        """(S, pixels): how much each pixel along one direction counts for each pixel of the square; rows sum to 1."""
        scale = side / self.size
        stretch = torch.clamp(scale, min=1.0)  # antialiasing: when a picture shrinks, the cubic is widened
        centres = (length - side) / 2 + (torch.arange(self.size, dtype=torch.float64)[:, None] + 0.5) * scale
        places = torch.arange(pixels, dtype=torch.float64)
        x = torch.abs((places + 0.5 - centres) / stretch)
        # Keys' cubic with a = -0.5, as in Pillow (src/libImaging/Resample.c)
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        taps = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
        return (taps / taps.sum(dim=1, keepdim=True)).to(torch.float32)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` has proven."""

    folder: Path
    parity: dict[str, Parity]
    """Of each format by file name."""
    latency: Latency
    sizes: dict[str, int]
    """Bytes of each file of the folder."""


def publish(target: Path, bundle: Bundle, weights: dict[str, Tensor], check: Pictures) -> Published:
    """Make the whole bundle beside `target`, prove it, and only then put it there.

    `weights` is the network's `state_dict()`, `check` uint8 (n, S, S, 3) of real pictures; a few dozen are enough. An
    earlier bundle at `target` stays until the new one is whole. A process killed at the worst moment leaves the earlier
    one as `.<name>.old` beside it, and the next `publish` puts it back before it begins. One `publish` per target at a
    time. Raises BundleError: the new bundle is not right, the folder cannot be written, or holds something else.
    """
    target = target.absolute()
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(target)
        _refuse_foreign(target)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        save(new, bundle, weights)
        load(new)
        network = empty(bundle.model)
        network.load_state_dict(weights, assign=True)  # as they were given, not as they were written
        parity = export(new, bundle, network, check)
        latency = measure_latency(new, check)
        sizes = {name: (new / name).stat().st_size for name in parity}
        write(new / CARD, card(bundle, parity, sizes, latency).encode("utf-8", errors="backslashreplace"))
        seal(new, bundle)
        verify(new)
        _swap(new, target)
    except OSError as error:
        raise BundleError(
            f"a bundle is made beside its place, but {printable(target.parent)} cannot be written "
            f"({error.strerror or error}); free or mend it, or name another place"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Published(
        folder=target,
        parity=parity,
        latency=latency,
        sizes={path.name: path.stat().st_size for path in sorted(target.iterdir())},
    )


def export(folder: Path, bundle: Bundle, network: MushroomCNN, check: Pictures) -> dict[str, Parity]:
    """Write model.pt2 and both ONNX files beside the weights that `save` wrote, and hold all four to `network`.

    Raises BundleError as `compare` does, and when an exporter fails.
    """
    _python(_WRITE, folder.resolve())
    return compare(folder, bundle, network, check)


def compare(folder: Path, bundle: Bundle, network: MushroomCNN, check: Pictures) -> dict[str, Parity]:
    """The parity of each format by file name.

    Each is read in a fresh process and sees `check`, uint8 (n, S, S, 3), one by one, in batches of SOME, and at once;
    the one of any size sees some of them at many sizes. The network itself answers here, on the CPU. Raises
    BundleError: a reader fails, a log-probability is off by more than TOLERANCE, a pixel by more than GREY_LEVELS.
    """
    square = (bundle.image_size, bundle.image_size, 3)
    if check.dtype != np.uint8 or check.shape[1:] != square or not len(check):
        raise ValueError(f"`check` must be uint8 (n >= 1, {square}), but is {check.dtype} {check.shape}")
    deployed = Deployed(copy.deepcopy(network), bundle.temperature).cpu().eval()
    sizes = tuple(sorted({1, min(SOME, len(check)), len(check)}))
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        pictures = Path(scratch, "pictures.npy")
        np.save(pictures, check)
        resized = Path(scratch, "resized.npz")
        stepwise, at_once = _resized(check, resized)

        def answer(name: str) -> dict[str, npt.NDArray[Any]]:
            answers = Path(scratch, f"{name}.npz")
            seen = resized if name == ANY_SIZE else pictures
            _python(_READERS[name], (folder / name).resolve(), seen, answers, *sizes)
            with np.load(answers, allow_pickle=False) as stored:
                return dict(stored)

        answers = dict(zip(_READERS, pool.map(answer, _READERS), strict=True))
    parity = {
        name: _parity(folder / name, deployed, check, answers[name]["probabilities"], sizes)
        for name in (WEIGHTS, TORCH, ONNX)
    }
    seen, probabilities = answers[ANY_SIZE]["squares"], answers[ANY_SIZE]["probabilities"]
    off, off_at_once = (int(np.abs(seen.astype(np.int16) - squares).max()) for squares in (stepwise, at_once))
    if off > GREY_LEVELS:
        raise BundleError(
            f"a graph that resizes must agree with Pillow to {GREY_LEVELS} grey level, but "
            f"{printable(folder / ANY_SIZE)} is {off} off; report it, and do not use this format"
        )
    proof = _parity(folder / ANY_SIZE, deployed, seen, probabilities[None], (1,))
    return parity | {ANY_SIZE: replace(proof, grey_levels=off_at_once)}


def measure_latency(folder: Path, pictures: Pictures) -> Latency:
    """What one picture takes through model.onnx, on one thread of this machine with whatever else it is doing."""
    with tempfile.TemporaryDirectory() as scratch:
        taken, given = Path(scratch, "pictures.npy"), Path(scratch, "milliseconds.npy")
        np.save(taken, pictures)
        _python(_TIMED, (folder / ONNX).resolve(), taken, given)
        low, median, high = map(float, np.quantile(np.load(given, allow_pickle=False), (0.25, 0.5, 0.75)))
    return Latency(median=median, low=low, high=high)


def write_graphs(folder: Path) -> None:
    """Write model.pt2, model.onnx and model-any-size.onnx beside a bundle's weights. Chatters."""
    bundle, network = load(folder)
    size = bundle.image_size
    deployed = Deployed(network.to(memory_format=torch.contiguous_format), bundle.temperature).eval()
    squares = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    program = torch.export.export(deployed, (squares,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the folders of whoever exports
    file = io.BytesIO()
    torch.export.save(program, file)
    write(folder / TORCH, file.getvalue())

    prepared = f"shorter side resized to {size} pixels (bicubic, antialiased), central square"
    taken = {"pictures": f"uint8 (n, {size}, {size}, 3): upright RGB, {prepared}"}
    given = {"probabilities": f"float32 (n, {len(bundle.classes)}): calibrated"}
    write(folder / ONNX, _to_onnx(program, bundle, taken, given))

    # Large enough a picture, and sides that differ, for the exporter to see that both are free
    picture = torch.zeros(1, 2 * MIN_SIDE, 3 * MIN_SIDE, 3, dtype=torch.uint8)
    sides = {axis: torch.export.Dim(name, min=MIN_SIDE, max=MAX_PIXELS) for axis, name in ((1, "height"), (2, "width"))}
    program = torch.export.export(AnySize(deployed, size).eval(), (picture,), dynamic_shapes=(sides,))
    taken = {"picture": "uint8 (1, height, width, 3): upright RGB"}
    given = {"probabilities": given["probabilities"], "square": f"uint8 (1, {size}, {size}, 3): {prepared}"}
    write(folder / ANY_SIZE, _to_onnx(program, bundle, taken, given))


def _to_onnx(
    program: torch.export.ExportedProgram, bundle: Bundle, taken: dict[str, str], given: dict[str, str]
) -> bytes:
    """A checked ONNX file; `taken` and `given` name and explain inputs and outputs."""
    import onnx

    converted = torch.onnx.export(
        program,
        (),
        dynamo=True,
        input_names=list(taken),
        output_names=list(given),
        opset_version=OPSET,
        external_data=False,
    )
    assert converted is not None
    model = converted.model_proto
    del model.graph.value_info[:]  # shapes of what is in between, under the exporter's names
    named: dict[str, str] = {}
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # the exporter's own notes, stack traces among them
    for part in (*model.graph.input, *model.graph.output):
        part.doc_string = (taken | given)[part.name]
        for axis, dimension in enumerate(part.type.tensor_type.shape.dim):
            if dimension.dim_param:  # the exporter calls it s32 or the like
                dimension.dim_param = named.setdefault(dimension.dim_param, ("n", "height", "width")[axis])
    noted = {"format": FORMAT, "classes": json.dumps(bundle.classes), "image_size": str(bundle.image_size)}
    onnx.helper.set_model_props(model, noted)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _resized(check: Pictures, file: Path) -> tuple[Pictures, Pictures]:
    """Write up to SIZES of the pictures to an .npz, each at another size; returns the squares that Pillow makes.

    First with one direction after the other, as the graph does it; then in one call, in which Pillow 13 goes down first
    for some tall pictures. Rounding and clipping in between make other pixels of that: 2 % of them at 32 pixels and 6 %
    at 128, by 9 levels at most, over 200 drawn pictures cropped to any shape; by 20 levels on noise.
    """
    side = check.shape[1]
    pictures: dict[str, Pictures] = {}
    stepwise: list[Pictures] = []
    at_once: list[Pictures] = []
    for place, picture in enumerate(check[:SIZES]):
        # Half to four and a half times as wide and high; multiples of these two fractions cover the plane evenly
        width, height = (max(MIN_SIDE, round(side * (0.5 + place * step % 1 * 4))) for step in (0.7549, 0.5698))
        image = Image.fromarray(picture).resize((width, height))
        pictures[str(place)] = np.asarray(image)
        stepwise.append(across_then_down(image, side))
        at_once.append(to_square(image, side))
    np.savez(file, **pictures)  # pyright: ignore[reportArgumentType]
    return np.stack(stepwise), np.stack(at_once)


def across_then_down(image: Image.Image, size: int) -> Pictures:
    """`to_square` by two calls of Pillow's resize, each in one direction."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    image = image.resize((size, height), Image.Resampling.BICUBIC, box=(left, 0, left + side, height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=(0, top, size, top + side)))


# --- fresh processes

_WRITE = """
import sys
from pathlib import Path
from model.export.formats import write_graphs
write_graphs(Path(sys.argv[1]))
"""

_ANSWER = """
pictures = np.load(sys.argv[2], allow_pickle=False)
answers = [
    np.concatenate([read(pictures[start : start + size]) for start in range(0, len(pictures), size)])
    for size in map(int, sys.argv[4:])
]
np.savez(sys.argv[3], probabilities=np.stack(answers))
"""

_READERS = {
    WEIGHTS: """
import sys
from pathlib import Path
import numpy as np, torch
from model.export.bundle import load
from model.preprocessing import normalise
bundle, network = load(Path(sys.argv[1]).parent)
def read(pictures):
    with torch.inference_mode():
        return torch.softmax(network(normalise(torch.from_numpy(pictures))) / bundle.temperature, dim=1).numpy()
"""
    + _ANSWER,
    TORCH: """
import sys
import numpy as np, torch
network = torch.export.load(sys.argv[1]).module()
def read(pictures):
    with torch.inference_mode():
        return network(torch.from_numpy(pictures)).numpy()
"""
    + _ANSWER,
    ONNX: """
import sys
import numpy as np, onnxruntime
network = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
def read(pictures):
    return network.run(["probabilities"], {"pictures": pictures})[0]
"""
    + _ANSWER,
    ANY_SIZE: """
import sys
import numpy as np, onnxruntime
network = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
with np.load(sys.argv[2], allow_pickle=False) as pictures:
    both = [network.run(["probabilities", "square"], {"picture": pictures[name][None]}) for name in pictures]
np.savez(sys.argv[3], **{name: np.concatenate(rows) for name, rows in zip(("probabilities", "squares"), zip(*both))})
""",
}
"""How a stranger opens each format, with what that needs and nothing more, and answers for the pictures of a file."""

_TIMED = """
import sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
network = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pictures = np.load(sys.argv[2], allow_pickle=False)
def milliseconds(turn):
    begun = time.perf_counter()
    network.run(["probabilities"], {"pictures": pictures[turn % len(pictures)][None]})
    return 1e3 * (time.perf_counter() - begun)
first = [milliseconds(turn) for turn in range(3)]
turns = max(5, min(200, int(2000 / min(first))))
np.save(sys.argv[3], [milliseconds(turn) for turn in range(turns)])
"""
"""Two seconds of single pictures, and 200 of them at most."""

STRANGER_SECONDS = 600.0
"""After which a program that opens a format is given up; each takes a few seconds, most of them for its imports."""


def _python(program: str, *arguments: object) -> None:
    """Run a program in a fresh process that finds `model`. Raises BundleError with its last words if it fails."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STRANGER_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BundleError(
            f"every format of a bundle must be written and read again, but {printable(str(arguments[0]))} took more "
            f"than {error.timeout:g} s; the same command tries it again"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BundleError(
            f"every format of a bundle must be written and read again, but {printable(str(arguments[0]))} could not: "
            f"{printable(said)[:300]}; a bundle is exported where onnx, onnxscript and onnxruntime are installed"
        )


def _parity(
    path: Path, deployed: Deployed, pictures: Pictures, answers: npt.NDArray[np.float32], sizes: tuple[int, ...]
) -> Parity:
    """The network's own probabilities against `answers` (batch sizes, n, classes)."""
    with torch.inference_mode():
        eager = deployed(torch.tensor(pictures)).numpy()
    parity = Parity(
        pictures=len(eager),
        batch_sizes=sizes,
        probability=float(np.abs(answers - eager).max()),
        log_probability=float(np.abs(np.log(np.maximum(answers, LEAST)) - np.log(np.maximum(eager, LEAST))).max()),
        disagreements=int((answers.argmax(-1) != eager.argmax(-1)).sum()),
    )
    if not parity.log_probability <= TOLERANCE:  # as it must be when it is NaN
        raise BundleError(
            f"every format must agree with the network to {TOLERANCE:g} in log-probability, but {printable(path)} is "
            f"{parity.log_probability:.2g} off ({parity.disagreements} other first choices for {len(eager)} pictures); "
            "report it, and do not use this format"
        )
    return parity


# --- the place


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _tidy(target: Path) -> None:
    """Ends what a killed process began: the earlier bundle is put back if its place is empty, else removed."""
    if _old(target).exists():
        if target.exists():
            shutil.rmtree(_old(target))
        else:
            _old(target).rename(target)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if re.fullmatch(r"\d+", left.name.rpartition(".")[2]) and time.time() - left.stat().st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    """Only a bundle is ever replaced: whatever else lies there is somebody's."""
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir())
        foreign = [name for name in names if name not in NAMES and not name.startswith(".")]
        what = f"holds '{printable(foreign[0])}', which is none of its files" if foreign else None
    else:
        what = "is a file" if target.exists() else None
    if what:
        raise BundleError(
            f"a bundle replaces another one only, but {printable(target)} {what}; move that away or name another place"
        )


def _swap(new: Path, target: Path) -> None:
    """Put `new` at `target`; between the two renames the earlier bundle is at `_old(target)`."""
    if not target.exists():
        new.rename(target)
        return
    target.rename(_old(target))
    try:
        new.rename(target)
    except OSError:
        _old(target).rename(target)
        raise
    shutil.rmtree(_old(target), ignore_errors=True)
