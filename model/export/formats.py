"""Exports the bundle in formats that other programs can run, and verifies that they compute what the network computes.

    publish:  save -> load -> `write_graphs` -> `compare` -> card -> seal -> verify -> rename into place
    graphs:   network -> torch.export -> model.pt2 -> torch.onnx -> model.onnx
    page:     network -> layout -> classify.html

The exporters and the readers run in separate processes: what they print, warn about or change stays there, a crash is
an error like any other, and each format is read as another program would read it.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.export.bundle import CONFIG, FORMAT, WEIGHTS, Bundle, BundleError, empty, load, save, seal, verify, write
from model.export.card import Latency, Parity, card
from model.files import printable
from model.limits import cpus
from model.network import MushroomCNN
from model.page.write import page
from model.preprocessing import normalise

TORCH = "model.pt2"
ONNX = "model.onnx"
PAGE = "classify.html"
CARD = "README.md"
PREPROCESSING = "preprocessing.py"
NAMES = frozenset({CONFIG, WEIGHTS, TORCH, ONNX, PAGE, CARD, PREPROCESSING})
"""Names of the files in a published folder."""
EARLIER = frozenset({"model-any-size.onnx"})
"""Names of files that only earlier versions published; a folder with them is still a bundle and may be replaced."""

TOLERANCE = 1e-4
"""Largest allowed difference of a log-probability. Summing in another order changed them by 1e-6 with logits of a few
units and by 3e-5 with logits thirty times as large, about float32's precision for such numbers."""
LEAST = 1e-12
"""Probability below which differences are ignored, because the logarithms of such small values do not matter."""
SOME = 7
"""Second of the three batch sizes that are compared: neither one, nor all, nor a power of two."""

OPSET = 18
"""ONNX opset version: the oldest that torch's exporter writes without converting, and so the most widely supported."""

ABANDONED = 3600
"""Seconds after which an unchanged temporary folder is considered left behind by a killed process."""

STRANGER_SECONDS = 600.0
"""Time limit in seconds for a process that writes or reads a format; each takes a few seconds, mostly for imports."""

ROOT = Path(__file__).resolve().parents[2]

Pictures = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Deployed(nn.Module):
    """Maps squares, uint8 (N, S, S, 3), to probabilities, float32 (N, classes).

    model.pt2 and model.onnx contain it: everything after the resize, so that no other program has to reimplement it.
    """

    def __init__(self, network: MushroomCNN, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.softmax(self.network(normalise(pictures)) / self.temperature, dim=1)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published bundle, with how well each format agrees with the network."""

    folder: Path
    bundle: Bundle
    parity: dict[str, Parity]
    """Agreement of each format with the network, by file name."""
    latency: Latency
    sizes: dict[str, int]
    """Size in bytes of each file in the folder."""


def publish(target: Path, bundle: Bundle, weights: dict[str, Tensor], check: Pictures) -> Published:
    """Build the whole bundle beside `target`, verify it, and only then move it there.

    `weights` is the network's `state_dict()`; `check` holds real pictures, uint8 (n, S, S, 3), of which a few dozen are
    enough. An earlier bundle at `target` stays until the new one is complete. A process killed at the worst moment
    leaves the earlier one beside it as `.<name>.old`, and the next `publish` puts it back first. Only one `publish` per
    target may run at a time. Raises BundleError if the new bundle is wrong, if the folder is not writable, or if it
    holds anything but a bundle.
    """
    target = target.absolute()
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(target)
        _refuse_foreign(target)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        save(new, bundle, weights)
        load(new)
        network = empty(bundle)
        network.load_state_dict(weights, assign=True)  # as they were given, not as they were written
        write(new / PAGE, page(bundle, network).encode())
        _python(_WRITE, new.resolve())
        parity = compare(new, bundle, network, check)
        latency = measure_latency(new, check)
        sizes = {name: (new / name).stat().st_size for name in parity}
        write(new / PREPROCESSING, (ROOT / "model" / PREPROCESSING).read_bytes())
        write(new / CARD, card(bundle, parity, sizes, latency).encode("utf-8", errors="backslashreplace"))
        seal(new, bundle)
        verify(new)
        _swap(new, target)
    except OSError as error:
        raise BundleError(
            f"cannot write {printable(target)} ({error.strerror or error}): free disk space or allow writing to "
            f"{printable(target.parent)}, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    return Published(folder=target, bundle=bundle, parity=parity, latency=latency, sizes=sizes)


def compare(folder: Path, bundle: Bundle, network: MushroomCNN, check: Pictures) -> dict[str, Parity]:
    """Return how far each format is from `network` on the CPU, by file name.

    Each format is read in a fresh process and run on `check`, uint8 (n, S, S, 3): one by one, in batches of SOME, and
    all at once. Raises BundleError if a reader fails or a log-probability differs by more than TOLERANCE.
    """
    square = (bundle.image_size, bundle.image_size, 3)
    if check.dtype != np.uint8 or check.shape[1:] != square or not len(check):
        raise ValueError(f"`check` must be uint8 (n >= 1, {square}), but is {check.dtype} {check.shape}")
    deployed = Deployed(copy.deepcopy(network), bundle.temperature).cpu().eval()
    with torch.inference_mode():
        expected = deployed(torch.tensor(check)).numpy()
    sizes = tuple(sorted({1, min(SOME, len(check)), len(check)}))
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(cpus()) as pool:
        pictures = Path(scratch, "pictures.npy")
        np.save(pictures, check)

        def answer(name: str) -> Floats:
            answers = Path(scratch, f"{name}.npy")
            _python(_READERS[name] + _ANSWER, (folder / name).resolve(), pictures, answers, *sizes)
            return np.load(answers, allow_pickle=False)

        answers = zip(_READERS, pool.map(answer, _READERS), strict=True)
        return {name: _parity(folder / name, expected, found, sizes) for name, found in answers}


def measure_latency(folder: Path, pictures: Pictures) -> Latency:
    """Return the time that model.onnx takes for one picture, on one thread of this machine under its current load.

    The pictures, uint8 (n, S, S, 3), are shown one at a time for two seconds, up to 200 times.
    """
    with tempfile.TemporaryDirectory() as scratch:
        shown, times = Path(scratch, "pictures.npy"), Path(scratch, "milliseconds.npy")
        np.save(shown, pictures)
        _python(_TIME, (folder / ONNX).resolve(), shown, times)
        low, median, high = map(float, np.quantile(np.load(times, allow_pickle=False), (0.25, 0.5, 0.75)))
    return Latency(median=median, low=low, high=high)


def write_graphs(folder: Path) -> None:
    """Write model.pt2 and model.onnx beside a bundle's weights. The exporters may print and warn."""
    import onnx

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

    converted = torch.onnx.export(
        program,
        (),
        dynamo=True,
        input_names=["pictures"],
        output_names=["probabilities"],
        opset_version=OPSET,
        external_data=False,
    )
    assert converted is not None
    model = converted.model_proto
    (pictures,), (probabilities,) = model.graph.input, model.graph.output
    pictures.doc_string = (
        f"uint8 (n, {size}, {size}, 3): upright RGB, shorter side resized to {size} pixels (bicubic, antialiased), "
        "central square"
    )
    probabilities.doc_string = f"float32 (n, {len(bundle.classes)}): {bundle.calibration}"
    del model.graph.value_info[:]  # intermediate shapes, under the exporter's names
    for part in (*model.graph.node, pictures, probabilities):
        del part.metadata_props[:]  # the exporter's own notes, stack traces among them
    for part in (pictures, probabilities):
        part.type.tensor_type.shape.dim[0].dim_param = "n"  # the exporter calls it s32 or the like
    notes = {"format": FORMAT, "classes": json.dumps(bundle.classes), "image_size": str(size)}
    notes["ranges"] = json.dumps(bundle.ranges)
    onnx.helper.set_model_props(model, notes)
    onnx.checker.check_model(model, full_check=True)
    write(folder / ONNX, model.SerializeToString(deterministic=True))


# --- fresh processes

_WRITE = """
import sys
from pathlib import Path
from model.export.formats import write_graphs
write_graphs(Path(sys.argv[1]))
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
""",
    TORCH: """
import sys
import numpy as np, torch
network = torch.export.load(sys.argv[1]).module()
def read(pictures):
    with torch.inference_mode():
        return network(torch.from_numpy(pictures)).numpy()
""",
    ONNX: """
import sys
import numpy as np, onnxruntime
network = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
def read(pictures):
    return network.run(["probabilities"], {"pictures": pictures})[0]
""",
    PAGE: """
import sys
from pathlib import Path
import numpy as np
from model.page.write import read as opened
read = opened(Path(sys.argv[1]))
""",
}
"""Programs that open each format as a user would, importing only what that needs; for the page, the browser's steps."""

_ANSWER = """
pictures = np.load(sys.argv[2], allow_pickle=False)
answers = [
    np.concatenate([read(pictures[start : start + size]) for start in range(0, len(pictures), size)])
    for size in map(int, sys.argv[4:])
]
np.save(sys.argv[3], np.stack(answers))
"""

_TIME = """
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


def _python(program: str, path: Path, *arguments: object) -> None:
    """Run a program on a file of the bundle in a fresh process. Raises BundleError with its last line if it fails."""
    found = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # `model` is found there
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, str(path), *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": found},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STRANGER_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BundleError(
            f"cannot export {printable(path)} (took more than {error.timeout:g} s): run the same command again"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BundleError(
            f"cannot export {printable(path)} ({printable(said)[:300]}): install onnx, onnxscript and onnxruntime if "
            "one of them is missing, otherwise report this"
        )


def _parity(path: Path, expected: Floats, answers: Floats, sizes: tuple[int, ...]) -> Parity:
    """Compare probabilities, (batch sizes, n, classes), with the network's own, (n, classes)."""
    parity = Parity(
        pictures=len(expected),
        batch_sizes=sizes,
        probability=float(np.abs(answers - expected).max()),
        log_probability=float(np.abs(np.log(np.maximum(answers, LEAST)) - np.log(np.maximum(expected, LEAST))).max()),
        disagreements=int((answers.argmax(-1) != expected.argmax(-1)).sum()),
    )
    if not parity.log_probability <= TOLERANCE:  # true for NaN, too
        raise BundleError(
            f"cannot export {printable(path)} (a log-probability differs from the network's by "
            f"{parity.log_probability:.2g}, more than {TOLERANCE:g}, and {parity.disagreements} predictions changed): "
            "report this"
        )
    return parity


# --- moving into place


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _clean_up(target: Path) -> None:
    """Clean up after a killed process: put the earlier bundle back if its place is empty, else remove it."""
    if _old(target).exists():
        if target.exists():
            shutil.rmtree(_old(target))
        else:
            _old(target).rename(target)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if re.fullmatch(r"\d+", left.name.rpartition(".")[2]) and time.time() - left.stat().st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    """Raise BundleError if `target` holds anything but a bundle: that is the user's and must not be replaced."""
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir())
        foreign = [name for name in names if name not in NAMES | EARLIER and not name.startswith(".")]
        problem = f"it holds '{printable(foreign[0])}', which is not part of a bundle" if foreign else None
    else:
        problem = "it is a file" if target.exists() else None
    if problem:
        raise BundleError(f"cannot replace {printable(target)} ({problem}): move it away, then run the command again")


def _swap(new: Path, target: Path) -> None:
    """Move `new` to `target`; between the two renames the earlier bundle is at `_old(target)`."""
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
