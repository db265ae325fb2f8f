"""The network as the page computes it: layers with folded batch norm, and all their numbers in one array.

    MushroomCNN -> `lay_out` -> Layout -> JSON in the page -> network.js
                                                           -> `answer`, the same steps in NumPy, by which it is verified

Map 0 is the normalised picture; layer n computes map n + 1. Every layer is one convolution. Its numbers are its
weights, [outputs / 8][kernel][kernel][inputs][8], for the eight output channels that kernel.c sums at once, and a bias
per output. After the layers come the head's weights, [classes][features], and its biases; then, if the network knows
strangers, what is usual for it: the features' scale, the means, [classes][features], and the two usual values of each.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model.network import MushroomCNN, ResidualBlock
from model.preprocessing import MEAN, STD

TOGETHER = 8
"""Number of output channels that the kernel sums at once; every layer of the family has a multiple of it."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution with its bias, the map that is added to it, and the ReLU; maps are (rows, columns, channels)."""

    source: int
    """Number of the map that it reads."""
    added: int | None
    """Number of the map that is added before the ReLU: a block's shortcut."""
    relu: bool
    inputs: int
    outputs: int
    kernel: int
    """Side of the kernel: 3, padded by the dilation, or 1."""
    stride: int
    dilation: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A network for the page: everything in it but the numbers."""

    scale: float
    shift: float
    """A pixel's value becomes value x scale + shift."""
    layers: list[Layer]
    pooled: list[str]
    """The head's features: "max", "avg", or both in that order, each one number per channel of the last map."""
    classes: int
    familiar: bool
    """Whether the numbers end with those of a `model.strangers.Familiar`."""


def lay_out(network: MushroomCNN) -> tuple[Layout, Floats]:
    """Return a network's layout and its numbers; batch norm is folded into the convolutions in float64."""
    layers: list[Layer] = []
    numbers: list[npt.NDArray[np.float64]] = []

    def add(convs: nn.Module, source: int, *, relu: bool, added: int | None = None) -> int:
        """Add the layers of a sequence of convolutions; `relu` and `added` are the last one's. Return its map."""
        found = list(_convolutions(convs))
        for place, (conv, norm, stride) in enumerate(found):
            last = place == len(found) - 1
            scale = norm.weight.double() / torch.sqrt(_buffer(norm.running_var) + norm.eps)
            weights = (conv.weight.double() * scale[:, None, None, None]).detach().numpy()
            outputs, inputs, kernel, _ = weights.shape
            blocks = weights.reshape(outputs // TOGETHER, TOGETHER, inputs, kernel, kernel)
            bias = norm.bias.double() - _buffer(norm.running_mean) * scale
            numbers.extend((blocks.transpose(0, 3, 4, 2, 1).ravel(), bias.detach().numpy()))
            layer = Layer(
                source=source,
                added=added if last else None,
                relu=relu or not last,
                inputs=inputs,
                outputs=outputs,
                kernel=kernel,
                stride=stride,
                dilation=conv.dilation[0],
            )
            layers.append(layer)
            source = len(layers)
        return source

    maps = add(network.stem, 0, relu=True)
    for block in (network.block1, network.block2, network.block3):
        maps = _add_block(block, maps, add)
    pooling, head = network.pooling, network.head
    numbers += [tensor.detach().double().numpy().ravel() for tensor in (head.weight, head.bias)]
    layout = Layout(
        scale=1 / (255 * STD[0]),
        shift=-MEAN[0] / STD[0],
        layers=layers,
        pooled=["max"] * pooling.has_max + ["avg"] * pooling.has_avg,
        classes=head.out_features,
        familiar=network.familiar is not None,
    )
    if (familiar := network.familiar) is not None:
        numbers += [one.double().numpy().ravel() for one in (familiar.scale, familiar.means, familiar.usual)]
    return layout, np.concatenate(numbers).astype("<f4")


def answer(layout: Layout, numbers: Floats, pictures: npt.NDArray[np.uint8]) -> Floats:
    """Return the logits, float32 (N, classes), that the page computes for squares, uint8 (N, S, S, 3)."""
    return np.stack([_logits(layout, numbers, picture) for picture in pictures])


def _logits(layout: Layout, numbers: Floats, picture: npt.NDArray[np.uint8]) -> Floats:
    maps = [picture * np.float32(layout.scale) + np.float32(layout.shift)]
    start = 0

    def take(*shape: int) -> Floats:
        nonlocal start
        start += math.prod(shape)
        return numbers[start - math.prod(shape) : start].reshape(shape)

    for layer in layout.layers:
        source, side = maps[layer.source], math.ceil(len(maps[layer.source]) / layer.stride)
        pad = layer.dilation if layer.kernel == 3 else 0
        padded = np.pad(source, ((pad, pad), (pad, pad), (0, 0)))
        blocks = take(layer.outputs // TOGETHER, layer.kernel, layer.kernel, layer.inputs, TOGETHER)
        weights = blocks.transpose(1, 2, 3, 0, 4).reshape(layer.kernel, layer.kernel, layer.inputs, layer.outputs)
        total = np.broadcast_to(take(layer.outputs), (side, side, layer.outputs)).copy()
        for row, column in np.ndindex(layer.kernel, layer.kernel):
            rows, columns = (
                slice(first, first + (side - 1) * layer.stride + 1, layer.stride)
                for first in (row * layer.dilation, column * layer.dilation)
            )
            total += padded[rows, columns] @ weights[row, column]
        if layer.added is not None:
            total += maps[layer.added]
        maps.append(np.maximum(total, 0) if layer.relu else total)
    pooled = {"max": maps[-1].max(axis=(0, 1)), "avg": maps[-1].mean(axis=(0, 1))}
    features = np.concatenate([pooled[name] for name in layout.pooled])
    return take(layout.classes, len(features)) @ features + take(layout.classes)


class _Add(Protocol):
    """Adds the layers of a sequence of convolutions and returns the number of its map."""

    def __call__(self, convs: nn.Module, source: int, *, relu: bool, added: int | None = None) -> int: ...


def _add_block(block: ResidualBlock, source: int, add: _Add) -> int:
    shortcut = source if isinstance(block.shortcut, nn.Identity) else add(block.shortcut, source, relu=False)
    return add(block.branch, source, relu=True, added=shortcut)


def _convolutions(modules: nn.Module) -> Iterable[tuple[nn.Conv2d, nn.BatchNorm2d, int]]:
    """Yield each convolution of a sequence with its batch norm and its stride, which may be a module of its own."""
    stride, conv = 1, None
    for module in modules.children():
        if isinstance(module, nn.AvgPool2d):
            stride = cast(int, module.stride)
        elif isinstance(module, nn.Conv2d):
            conv, stride = module, stride * module.stride[0]
        elif isinstance(module, nn.BatchNorm2d):
            assert conv is not None
            yield conv, module, stride
            stride = 1


def _buffer(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None  # unless batch norm keeps no running statistics, which this network's does
    return tensor.double()
