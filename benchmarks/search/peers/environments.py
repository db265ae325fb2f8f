"""Virtual environments of the peers: each library is installed into one of its own, never into this program's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


class NotInstalled(Exception):  # noqa: N818 - a result to print, and no error
    """A peer's library could not be installed, or does not start."""


@dataclass(frozen=True, kw_only=True)
class PeerProgram:
    """A peer: a file of this folder that runs in an environment with its library."""

    name: str
    file: str
    """Name of the file without its ending, and of the environment."""
    variant: str = ""
    """Argument of the file."""
    requirements: Sequence[str]
    """What pip installs."""

    def command(self, environments: Path) -> list[str]:
        """Return the command that starts the peer, to be run in the repository's root."""
        return [str(_python(environments / self.file)), "-m", f"benchmarks.search.peers.{self.file}", self.variant]


_OPTUNA = ("optuna==5.0.0",)
_SYNE_TUNE = ("syne-tune[basic]==0.16.0",)

PEERS = (
    PeerProgram(name="Optuna: random, no pruner", file="optuna5", variant="random", requirements=_OPTUNA),
    PeerProgram(name="Optuna: TPE + Median", file="optuna5", variant="median", requirements=_OPTUNA),
    PeerProgram(name="Optuna: TPE + Hyperband", file="optuna5", variant="hyperband", requirements=_OPTUNA),
    PeerProgram(
        name="Ray Tune: OptunaSearch + ASHA", file="ray_tune", requirements=("ray[tune]==2.60.0", "optuna==5.0.0")
    ),
    PeerProgram(name="Syne Tune: ASHA", file="syne", variant="ASHA", requirements=_SYNE_TUNE),
    PeerProgram(name="Syne Tune: BOHB", file="syne", variant="BOHB", requirements=_SYNE_TUNE),
    PeerProgram(name="SMAC3: multi-fidelity", file="smac3", requirements=("smac==2.4.1",)),
    # 0.1.2 cannot be installed beside numpy 2.
    PeerProgram(name="DEHB", file="dehb_peer", requirements=("dehb==0.1.1",)),
    # It imports six without requiring it, and Keras needs a backend.
    PeerProgram(
        name="Keras Tuner: Hyperband", file="keras_hyperband", requirements=("keras-tuner==1.4.8", "six", "jax")
    ),
    PeerProgram(
        name="NePS: PriorBand",
        file="neps_priorband",
        requirements=("neural-pipeline-search==0.17.0", "pandas<3"),
    ),
)


def install(peer: PeerProgram, environments: Path) -> None:
    """Make the peer's environment unless it is there. Raises NotInstalled with pip's error."""
    folder = environments / peer.file
    done = folder / "installed.txt"
    wanted = "\n".join(peer.requirements)
    if done.exists() and done.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(_python(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    finished = subprocess.run(
        [*pip, *peer.requirements], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if finished.returncode:
        lines = finished.stdout.strip().splitlines()
        raise NotInstalled(next((line for line in lines if line.startswith("ERROR")), "pip failed"))
    done.write_text(wanted)


def _python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
