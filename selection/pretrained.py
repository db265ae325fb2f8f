"""A pretrained network for comparison: its features of the study's pictures, and a logistic regression on them.

name -> `load`: a `Pretrained`, the network without its last layer -> `features` of all pictures
     -> `fit_head`: penalty by the validation pictures, then train + validation -> logits of the test pictures
"""

from __future__ import annotations

import difflib
import hashlib
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data import Track, expanded, no_track
from data.batches import evaluated_at_once
from data.cache import squares
from data.catalog import Catalog
from data.split import Split
from model import logistic
from model.files import open_regular, printable, why
from model.plain_json import few
from tuning import StudyError

DEFAULT = "mobilenet_v3_small"
"""Name of the network that is compared with unless another one is chosen: torchvision's smallest with good features."""
MAX_BYTES = 4 * 2**30
"""Size in bytes of the largest file of weights that is read; torchvision's largest has 2.6 GB."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A pretrained network without its last layer, in evaluation mode, and how its pictures are prepared."""

    name: str
    weights: str
    """Name of the weights: torchvision's, or that of their file."""
    network: nn.Module
    """The network, normalised pictures (N, 3, S, S) -> features (N, F)."""
    size: int
    """Side of its pictures in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def key(self) -> str:
        """Key of the network in the log of test-set evaluations: its name, and a hash of its weights."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return f"{self.name} {digest.hexdigest()}"

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @torch.no_grad()
    def flops(self) -> int:
        """Count the FLOPs of one picture, two per multiply-add, as `model.network.cost` does."""
        device = next(self.network.parameters()).device
        with FlopCounterMode(display=False) as counter:
            self.network(torch.zeros(1, 3, self.size, self.size, device=device))
        return counter.get_total_flops()

    @torch.no_grad()
    def features(self, pictures: Iterable[npt.NDArray[np.uint8]], device: torch.device) -> Tensor:
        """Return the features (N, F) float32, on the CPU, of pictures of the network's size, uint8 (S, S, 3).

        The network stays on `device`. Raises StudyError if that is a GPU with too little memory.
        """
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        remaining, found = iter(pictures), list[Tensor]()
        try:
            network = self.network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            while batch := list(islice(remaining, evaluated_at_once(self.size))):
                images = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
                found.append(network(((images / 255 - mean) / std).to(device)).float().cpu())
        except torch.OutOfMemoryError as error:
            raise StudyError(
                f"{device} has too little free memory for {self.name}: stop other programs that use it, or run the "
                "same command with --device cpu; finished runs are kept"
            ) from error
        return torch.cat(found)


def load(name: str = DEFAULT, file: Path | None = None) -> Pretrained:
    """Return one of torchvision's classifiers with the weights that torchvision recommends, or those in `file`.

    Without `file` they are downloaded, or taken from torchvision's folder of downloads. Pictures are prepared as for
    the recommended weights. Raises StudyError for an unknown name, and for weights that cannot be had or do not fit.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        raise StudyError(
            f"--pretrained {printable(name)} is not one of torchvision's classifiers: choose another, such as "
            f"{', '.join(close or (DEFAULT, 'resnet18', 'efficientnet_b0'))}"
        )
    recommended: Any = models.get_model_weights(name).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    if file is None:
        try:
            network = models.get_model(name, weights=recommended, progress=sys.stderr.isatty())
        except Exception as error:  # a server, a proxy or a damaged download may fail in ways beyond listing
            raise StudyError(
                f"cannot download the weights of {name} ({printable(str(error))[:160]}): connect to the internet, or "
                f"download {recommended.url} on another machine and name the file with --weights FILE"
            ) from error
    else:
        network = models.get_model(name, weights=None)
    head = next((path for path, module in reversed([*network.named_modules()]) if isinstance(module, nn.Linear)), None)
    if head is None:
        raise StudyError(f"--pretrained {name} does not end in a linear layer: choose another, such as {DEFAULT}")
    network.set_submodule(head, nn.Identity())
    if file is not None:
        _fill(network, head, name, expanded(file))
    transforms = recommended.transforms()
    return Pretrained(
        name=name,
        weights=recommended.name if file is None else file.name,
        network=network.eval(),
        size=getattr(network, "image_size", transforms.crop_size[0]),  # vision transformers take one size only
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _fill(network: nn.Module, head: str, name: str, file: Path) -> None:
    """Load the weights in `file`, except those of the last layer, `head`. Raises StudyError if they do not fit."""
    try:
        with open_regular(file, MAX_BYTES) as opened:
            contents: object = torch.load(opened, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StudyError(f"cannot read --weights {printable(file)} ({why(error)}): name a file of weights") from error
    except Exception as error:  # a torn or foreign file breaks the unpickler in ways beyond listing
        raise StudyError(
            f"cannot read --weights {printable(file)} (damaged, or not only tensors: {type(error).__name__}): name a "
            f"state dict of torchvision's {name}, as torch.save writes it"
        ) from error
    given = cast(dict[object, object], contents) if isinstance(contents, dict) else {}
    stored = {key: value for key, value in given.items() if not str(key).startswith(f"{head}.")}
    expected = network.state_dict()
    # Files from before batch norm counted its batches lack these numbers, which evaluation does not use
    needed = {key for key in expected if not key.endswith("num_batches_tracked")}
    wrong = {
        "missing": needed - stored.keys(),
        "unknown": {str(key) for key in stored.keys() - expected.keys()},
        "of another shape": {
            key for key, tensor in expected.items() if key in stored and _shape(stored[key]) != tensor.shape
        },
    }
    if any(wrong.values()):
        said = "; ".join(f"{problem}: {few(keys)}" for problem, keys in wrong.items() if keys)
        raise StudyError(
            f"--weights {printable(file)} does not fit torchvision's {name} ({said}): name a state dict of this "
            "network, or choose another network with --pretrained NAME"
        )
    network.load_state_dict(cast(dict[str, Tensor], stored), strict=False)


def _shape(value: object) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """A logistic regression on a pretrained network's features, and its logits of the test pictures."""

    penalty: float
    """The penalty that was best on the validation pictures."""
    validation: float
    """Top-1 on the validation pictures, 0 to 1, of the head that was fitted without them."""
    logits: Tensor
    """Logits of the test pictures (N, C) float32 by the head that was fitted to train + validation."""
    labels: Tensor
    """Classes of the test pictures, (N,) int64."""
    flops: int
    """FLOPs per picture of network and head."""
    parameters: int
    """Number of parameters of network and head."""


def fit_head(
    pretrained: Pretrained, catalog: Catalog, split: Split, device: torch.device, track: Track = no_track
) -> FittedHead:
    """Compute the features of all pictures, fit the head, and return it with its logits of the test pictures.

    Raises DataError if a picture has changed since the scan, and StudyError as `Pretrained.features` does.
    """
    parts = [positions for _, positions in split.named()]
    order = np.concatenate(parts)
    decoded = squares(catalog, order.tolist(), pretrained.size)
    found = pretrained.features(track(decoded, f"Features by {pretrained.name}", len(order)), device)
    sizes = [len(part) for part in parts]
    train, validation, test = found.split(sizes)
    known, truth, labels = torch.from_numpy(catalog.labels[order]).split(sizes)
    classes = len(catalog.classes)
    penalty, reached = logistic.choose_penalty(train, known, validation, truth, classes)
    head = logistic.fit(torch.cat([train, validation]), torch.cat([known, truth]), classes, penalty)
    return FittedHead(
        penalty=penalty,
        validation=reached,
        logits=head(test),
        labels=labels,
        flops=pretrained.flops() + 2 * math.prod(head.weight.shape),
        parameters=pretrained.parameters + sum(parameter.numel() for parameter in head.parameters()),
    )
