"""The network: a small residual CNN whose strides, dilations, width, pooling and dropout are knobs.

    pictures -> stem -> block 1 -> block 2 -> dropout -> block 3 -> dropout -> pooling -> dropout -> head -> logits

The network of the hand-tuned recipe (63.85 % top-1 on nine genera of mushrooms) is one point of the family:
`ModelConfig(classes=9, width=1, stride_pattern="late", dilation_pattern="late", pooling="avg+max", dropout=0.2)`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.strangers import Familiar

CHANNELS = (32, 64, 128, 256)
"""Numbers of channels of the stem and of blocks 1 to 3, at width 1."""

STRIDES: dict[str, tuple[int, int, int, int]] = {
    "late": (1, 1, 2, 2),  # keeps fine texture at full resolution for longest, and costs most
    "middle": (1, 2, 2, 1),
    "early": (2, 2, 1, 1),
    "every": (2, 1, 2, 2),  # the only one that ends at an eighth of the picture's side; the others end at a quarter
}
"""Where the resolution is halved: strides of (stem, block 1, block 2, block 3)."""

DILATIONS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "none": ((1, 1), (1, 1), (1, 1)),
    "consecutive": ((2, 2), (2, 2), (2, 2)),  # the same rate each time leaves gaps: "gridding", arXiv:1702.08502
    "alternating": ((2, 1), (2, 1), (2, 1)),  # the second conv fills the gaps of the first
    "late": ((1, 1), (1, 1), (2, 1)),
    "progressive": ((1, 1), (2, 2), (3, 3)),
}
"""Dilation of the two 3x3 convs of (block 1, block 2, block 3)."""

Pooling = Literal["avg", "max", "avg+max"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of one network of the family; raises ValueError with the rule that a value breaks."""

    classes: int
    """Number of classes, at least 2."""
    width: float = 1.0
    """Multiplier of all channel counts, which are rounded to multiples of 8; FLOPs grow with its square."""
    stride_pattern: str = "late"
    """Where the resolution is halved: a key of `STRIDES`."""
    dilation_pattern: str = "late"
    """Where convolutions are dilated: a key of `DILATIONS`."""
    pooling: Pooling = "avg+max"
    """Global pooling of the last feature maps: mean, maximum, or both concatenated (twice the features)."""
    dropout: float = 0.2
    """Dropout probability after block 2, after block 3 and before the head; 0 omits the layers."""

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"`classes >= 2` must hold, but got {self.classes}")
        if not 0 < self.width <= 8:
            raise ValueError(f"`0 < width <= 8` must hold, but got {self.width}")
        check_choice("stride_pattern", self.stride_pattern, STRIDES)
        check_choice("dilation_pattern", self.dilation_pattern, DILATIONS)
        check_choice("pooling", self.pooling, get_args(Pooling))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`0 <= dropout < 1` must hold, but got {self.dropout}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Numbers of channels of the stem and of blocks 1 to 3."""
        return tuple(max(8, 8 * math.floor(channels * self.width / 8 + 0.5)) for channels in CHANNELS)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of the choices of the knob `name`."""
    listed = list(choices)
    if value not in listed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, listed))}, but got {value!r}")


class MushroomCNN(nn.Module):
    """The CNN: normalised pictures (N, 3, S, S) -> logits (N, classes), for any S >= 16; fastest in channels_last."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stem, *blocks = config.channels
        strides = STRIDES[config.stride_pattern]
        dilations = DILATIONS[config.dilation_pattern]
        self.stem = nn.Sequential(*_conv_bn_relu(3, stem, strides[0]), *_conv_bn_relu(stem, stem, 1))
        self.block1 = ResidualBlock(stem, blocks[0], strides[1], dilations[0])
        self.block2 = ResidualBlock(blocks[0], blocks[1], strides[2], dilations[1])
        self.dropout2 = _dropout(config.dropout)
        self.block3 = ResidualBlock(blocks[1], blocks[2], strides[3], dilations[2])
        self.dropout3 = _dropout(config.dropout)
        self.pooling = GlobalPooling(config.pooling)
        self.dropout = _dropout(config.dropout)
        self.head = nn.Linear(blocks[2] * self.pooling.copies, config.classes)
        self.familiar: Familiar | None = None  # an exported network's, by which it knows strangers
        for module in self.modules():
            # On the meta device there is nothing to draw, and drawing makes torch import its compiler first: 2 s
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                # He et al. 2015, arXiv:1502.01852: keeps the gradient's variance through a ReLU
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: Tensor) -> Tensor:
        return self.features_and_logits(pictures)[1]

    def features_and_logits(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled features (N, F) and the logits (N, C)."""
        maps = self.block1(self.stem(pictures))
        maps = self.dropout2(self.block2(maps))
        maps = self.dropout3(self.block3(maps))
        features = self.pooling(maps)
        return features, self.head(self.dropout(features))


class ResidualBlock(nn.Module):
    """Residual block, (N, C, H, W) -> (N, C', H / stride, W / stride): relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)).

    The order is that of He et al. 2015, arXiv:1512.03385: add, then ReLU, so that the branch can subtract as well. The
    first conv has the stride; if the shape changes, the shortcut is a 1x1 conv with batch norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_conv_bn_relu(inputs, outputs, stride, dilations[0]),
            Conv3x3(outputs, outputs, 1, dilations[1]),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if _changes_shape(inputs, outputs, stride):
            self.shortcut = nn.Sequential(
                _subsampling(stride),
                nn.Conv2d(inputs, outputs, kernel_size=1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.branch(maps) + self.shortcut(maps))


class Conv3x3(nn.Conv2d):
    """3x3 conv without bias, padded so that only the stride shrinks: (N, C, H, W) -> (N, C', H / stride, W / stride).

    If its stride equals its dilation, it reads only every `stride`-th row and column, so it is a plain conv of those.
    oneDNN has a kernel for the plain one and computes the other by matrix products, two to three times as slowly.

    On a CPU a dilated conv is computed in bfloat16 only if its input channels are a multiple of 16. Otherwise oneDNN's
    weight gradient (jit_bf16:avx512_core_bf16 of oneDNN 3.12) was NaN with 24 and 40, and a third off with 56 and more.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__(inputs, outputs, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        if self.stride == self.dilation != (1, 1):
            return functional.conv2d(functional.avg_pool2d(input, 1, self.stride), self.weight, padding=1)
        if self.dilation != (1, 1) and self.in_channels % 16 and input.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class Dropout(nn.Module):
    """Dropout for any shape; its probability is rounded to 1/65,536.

    On a CPU torch draws one random number per element, which at 8 ns on a Zen 4 core is a tenth of a training step at
    48 px; here four elements share 64 random bits.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.p = probability

    def forward(self, maps: Tensor) -> Tensor:
        if not self.training or maps.device.type != "cpu":
            return functional.dropout(maps, self.p, self.training)
        bits = torch.empty(-(-maps.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: maps.numel()] >= round(self.p * 2**16) - 2**15
        # The mask gets the memory layout of the maps, channels_last
        return maps * kept.to(maps.dtype).div_(1 - self.p).as_strided(maps.shape, maps.stride())

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class GlobalPooling(nn.Module):
    """Global pooling, (N, C, H, W) -> (N, C * copies): each channel's maximum, mean, or both in that order."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.has_max = "max" in pooling
        self.has_avg = "avg" in pooling
        self.copies = self.has_max + self.has_avg

    def forward(self, maps: Tensor) -> Tensor:
        features: list[Tensor] = []
        if self.has_max:
            features.append(maps.amax(dim=(2, 3)))  # adaptive_max_pool2d's backward is not deterministic on CUDA
        if self.has_avg:
            features.append(maps.mean(dim=(2, 3)))
        return torch.cat(features, dim=1)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a network: parameters and FLOPs."""

    parameters: int
    """Number of trainable parameters, including batch norm's."""
    flops: int
    """FLOPs of the forward pass for one picture, two per multiply-add; a training step takes about three times that."""


def cost(config: ModelConfig, image_size: int) -> Cost:
    """Return what torch's FlopCounterMode would count, convolutions and the head, computed in microseconds."""
    stem, *blocks = config.channels
    strides = STRIDES[config.stride_pattern]
    side = math.ceil(image_size / strides[0])
    convs = [(3, stem, 3, side), (stem, stem, 3, side)]  # inputs, outputs, kernel, side of the output
    inputs = stem
    for outputs, stride in zip(blocks, strides[1:], strict=True):
        side = math.ceil(side / stride)
        convs += [(inputs, outputs, 3, side), (outputs, outputs, 3, side)]
        convs += [(inputs, outputs, 1, side)] * _changes_shape(inputs, outputs, stride)
        inputs = outputs
    features = inputs * GlobalPooling(config.pooling).copies
    return Cost(
        parameters=sum(i * o * k**2 + 2 * o for i, o, k, _ in convs) + (features + 1) * config.classes,
        flops=2 * (sum(i * o * k**2 * side**2 for i, o, k, side in convs) + features * config.classes),
    )


def _changes_shape(inputs: int, outputs: int, stride: int) -> bool:
    return stride != 1 or inputs != outputs


def _subsampling(stride: int) -> nn.Module:
    """Return the rows and columns that a strided 1x1 conv reads: (N, C, H, W) -> (N, C, H / stride, W / stride).

    A stride in the conv itself would be the same function and no faster, but in channels_last oneDNN's backward of a
    strided 1x1 conv with fewer than 16 input channels writes past its workspace and crashes the process
    (github.com/uxlfoundation/oneDNN/issues/6035).
    """
    return nn.AvgPool2d(kernel_size=1, stride=stride) if stride > 1 else nn.Identity()


def _conv_bn_relu(inputs: int, outputs: int, stride: int, dilation: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
    return Conv3x3(inputs, outputs, stride, dilation), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _dropout(probability: float) -> nn.Module:
    return Dropout(probability) if probability > 0 else nn.Identity()
