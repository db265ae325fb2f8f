"""Where a network looked: what each place of a picture adds to a class's logit, exactly.

The network ends in global pooling and one dense layer, so that a logit is a sum over the places of the last maps. With
mean pooling, a place adds weight x activation / places for each channel; with the maximum, weight x activation at the
channel's maximum. Nothing is approximated, as in the class activation maps of Zhou et al. 2016, arXiv:1512.04150. The
page computes the same in network.js and draws the same in page.js.
"""

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from model.network import MushroomCNN

SHADE = 0.8
"""Darkness of the places that do not speak for a class, 0 to 1."""


@torch.inference_mode()
def evidence(network: MushroomCNN, pictures: Tensor, labels: Tensor) -> Tensor:
    """Return what each place adds to the logit of a class, less what it adds to the mean of all logits: (N, H, W).

    `pictures`, (N, 3, S, S), are normalised; `labels`, (N,) int64, choose a class for each of them. Every picture's
    parts add up to the logit less the mean logit, both without the head's bias. H and W are the size of the last maps.
    """
    found: list[Tensor] = []
    hook = network.pooling.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        network(pictures)
    finally:
        hook.remove()
    (maps,) = found
    size, channels = maps.shape[2:], maps.shape[1]
    flat = maps.flatten(2)
    weights = network.head.weight - network.head.weight.mean(dim=0)
    max_weights, avg_weights = weights[labels][:, :channels, None], weights[labels][:, -channels:, None]
    parts = torch.zeros_like(flat)
    if network.pooling.has_max:
        highest = flat.max(dim=2, keepdim=True)
        parts.scatter_(2, highest.indices, highest.values * max_weights)
    if network.pooling.has_avg:
        parts += flat * avg_weights / flat.shape[2]
    return parts.sum(dim=1).unflatten(1, size)


def explained(square: npt.NDArray[np.uint8], parts: npt.NDArray[np.float32], side: int) -> Image.Image:
    """Return a picture, uint8 (S, S, 3), with `side` pixels per side, and to the right of it its `spotlight`."""
    both = Image.new("RGB", (2 * side, side))
    both.paste(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
    both.paste(spotlight(square, parts, side), (side, 0))
    return both


def spotlight(square: npt.NDArray[np.uint8], parts: npt.NDArray[np.float32], side: int) -> Image.Image:
    """Return a picture, uint8 (S, S, 3), with `side` pixels per side, bright where `parts`, (H, W), speak for a class.

    The brightest place is as bright as in the picture, and places that say nothing, or speak against the class, are
    dimmed. The parts are blurred because the maximum of a channel is a single place.
    """
    light = np.maximum(parts, 0)
    for axis in (0, 1, 0, 1):
        padded = np.pad(light, [(int(axis == 0),) * 2, (int(axis == 1),) * 2], mode="edge")
        before, after = (np.take(padded, range(first, first + light.shape[axis]), axis) for first in (0, 2))
        light = (before + 2 * light + after) / 4
    shade = SHADE * (1 - np.sqrt(light / (light.max() or 1)))
    mask = Image.fromarray((255 * shade).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    picture = Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", picture.size), picture, mask)
