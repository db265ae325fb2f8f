"""The bundle in formats that other programs run, and the proof that they compute what the network computes.

    publish:  save -> load -> `export` -> card -> seal -> verify -> rename into place
    export:   network -> torch.export -> model.pt2 -> torch.onnx -> model.onnx -> each format read in a fresh process

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.bundle import CONFIG, FORMAT, WEIGHTS, Bundle, BundleError, empty, load, printable, save, seal, verify, write
from model.card import Parity, card
from model.network import MushroomCNN
from model.preprocessing import normalise

TORCH = "model.pt2"
ONNX = "model.onnx"
CARD = "README.md"
NAMES = frozenset({CONFIG, WEIGHTS, TORCH, ONNX, CARD})
"""What a published folder holds."""

TOLERANCE = 1e-4
"""Largest allowed difference of a log-probability; README of benchmarks has what was found."""
LEAST = 1e-12
"""Smaller probabilities are taken for this one: their logarithms say nothing that anybody acts on."""
SOME = 7
"""The middle one of the three batch sizes that are compared: neither one, nor all, nor a power of two."""

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


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` has proven."""

    folder: Path
    parity: dict[str, Parity]
    """Of each format by file name."""
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
        sizes = {name: (new / name).stat().st_size for name in parity}
        write(new / CARD, card(bundle, parity, sizes).encode("utf-8", errors="backslashreplace"))
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
        folder=target, parity=parity, sizes={path.name: path.stat().st_size for path in sorted(target.iterdir())}
    )


def export(folder: Path, bundle: Bundle, network: MushroomCNN, check: Pictures) -> dict[str, Parity]:
    """Write model.pt2 and model.onnx beside the weights that `save` wrote, and hold all three to `network`.

    Raises BundleError as `compare` does, and when an exporter fails.
    """
    _python(_WRITE, folder.resolve())
    return compare(folder, bundle, network, check)


def compare(folder: Path, bundle: Bundle, network: MushroomCNN, check: Pictures) -> dict[str, Parity]:
    """The parity of each format by file name.

    Each is read in a fresh process and sees `check`, uint8 (n, S, S, 3), one by one, in batches of SOME, and at once.
    The network itself answers here, on the CPU. Raises BundleError: a reader fails, or a log-probability is off by more
    than TOLERANCE.
    """
    square = (bundle.image_size, bundle.image_size, 3)
    if check.dtype != np.uint8 or check.shape[1:] != square or not len(check):
        raise ValueError(f"`check` must be uint8 (n >= 1, {square}), but is {check.dtype} {check.shape}")
    deployed = Deployed(copy.deepcopy(network), bundle.temperature).cpu().eval()
    with torch.inference_mode():
        eager = deployed(torch.from_numpy(check)).numpy()
    sizes = tuple(sorted({1, min(SOME, len(check)), len(check)}))
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        pictures = Path(scratch, "pictures.npy")
        np.save(pictures, check)

        def compared(name: str) -> Parity:
            answers = Path(scratch, f"{name}.npy")
            _python(_READERS[name] + _ANSWER, (folder / name).resolve(), pictures, answers, *sizes)
            return _parity(folder / name, eager, np.load(answers, allow_pickle=False), sizes)

        return dict(zip(_READERS, pool.map(compared, _READERS), strict=True))


def write_graphs(folder: Path) -> None:
    """Write model.pt2 and model.onnx beside a bundle's weights; both take any number of pictures. Chatters."""
    import onnx

    bundle, network = load(folder)
    deployed = Deployed(network.to(memory_format=torch.contiguous_format), bundle.temperature)
    square = (bundle.image_size, bundle.image_size, 3)
    example = torch.zeros(2, *square, dtype=torch.uint8)
    program = torch.export.export(deployed, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
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
    graph = converted.model_proto
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]  # the exporter's own notes, stack traces among them
    for part in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        for dimension in part.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = "n"  # the exporter calls it s32 or the like
    graph.graph.input[0].doc_string = (
        f"uint8 (n, {', '.join(map(str, square))}): upright RGB, shorter side resized to {bundle.image_size} pixels "
        "(bicubic, antialiased), central square"
    )
    graph.graph.output[0].doc_string = f"float32 (n, {len(bundle.classes)}): calibrated probabilities"
    noted = {"format": FORMAT, "classes": json.dumps(bundle.classes), "image_size": str(bundle.image_size)}
    onnx.helper.set_model_props(graph, noted)
    onnx.checker.check_model(graph, full_check=True)
    write(folder / ONNX, graph.SerializeToString(deterministic=True))


# --- fresh processes

_WRITE = """
import sys
from pathlib import Path
from model.formats import write_graphs
write_graphs(Path(sys.argv[1]))
"""

_READERS = {
    WEIGHTS: """
import sys
from pathlib import Path
import numpy as np, torch
from model.bundle import load
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
}
"""How a stranger opens each format, with what that needs and nothing more."""

_ANSWER = """
pictures = np.load(sys.argv[2], allow_pickle=False)
answers = [
    np.concatenate([read(pictures[start : start + size]) for start in range(0, len(pictures), size)])
    for size in map(int, sys.argv[4:])
]
np.save(sys.argv[3], np.stack(answers))
"""


def _python(program: str, *arguments: object) -> None:
    """Run a program in a fresh process that finds `model`. Raises BundleError with its last words if it fails."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BundleError(
            f"every format of a bundle must be written and read again, but {printable(str(arguments[0]))} could not: "
            f"{printable(said)[:300]}; a bundle is exported where onnx, onnxscript and onnxruntime are installed"
        )


def _parity(
    path: Path, eager: npt.NDArray[np.float32], answers: npt.NDArray[np.float32], sizes: tuple[int, ...]
) -> Parity:
    """`eager` (n, classes) against `answers` (batch sizes, n, classes)."""
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
