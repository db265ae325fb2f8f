"""The network: the hand-tuned recipe's is one point of the family, and every point is sound."""

import itertools
import re
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from model.network import (
    DILATIONS,
    STRIDES,
    Conv3x3,
    Cost,
    Dropout,
    GlobalPooling,
    ModelConfig,
    MushroomCNN,
    Pooling,
    ResidualBlock,
    cost,
)
from model.training import Precision, autocast

HAND_TUNED = ModelConfig(
    classes=9, width=1, stride_pattern="late", dilation_pattern="late", pooling="avg+max", dropout=0.2
)
GRID = list(itertools.product(STRIDES, DILATIONS, get_args(Pooling), (0.25, 0.5)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pictures(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size).contiguous(memory_format=torch.channels_last)


def shapes(model: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every named part's output, for one picture."""
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: tuple(out.shape[1:])}))
    model.eval()(pictures(1, size))
    return found


def convs(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_the_hand_tuned_network_has_the_shapes_of_its_table() -> None:
    found = shapes(MushroomCNN(HAND_TUNED), 64)
    parts = ("stem", "block1", "block2", "block3", "pooling", "head")
    assert [found[part] for part in parts] == [(32, 64, 64), (64, 64, 64), (128, 32, 32), (256, 16, 16), (512,), (9,)]


def test_the_hand_tuned_network_dilates_only_the_first_conv_of_the_last_block() -> None:
    model = MushroomCNN(HAND_TUNED)
    dilated = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
    assert dilated == ["block3.branch.0"]
    assert model.get_submodule(dilated[0]).dilation == (2, 2)


@pytest.mark.parametrize(("size", "gmac"), [(256, 11.9), (64, 0.75)])
def test_the_hand_tuned_network_costs_what_its_recipe_says(size: int, gmac: float) -> None:
    assert cost(HAND_TUNED, size).flops / 2e9 == pytest.approx(gmac, abs=0.05 if size == 256 else 0.005)


def test_the_hand_tuned_networks_parameters_add_up_by_hand() -> None:
    def conv_bn(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs

    stem = conv_bn(3, 32, 3) + conv_bn(32, 32, 3)
    blocks = sum(conv_bn(i, o, 3) + conv_bn(o, o, 3) + conv_bn(i, o, 1) for i, o in ((32, 64), (64, 128), (128, 256)))
    assert cost(HAND_TUNED, 64).parameters == stem + blocks + 512 * 9 + 9


@pytest.mark.parametrize("width", [0.25, 0.375, 1.0])
@pytest.mark.parametrize("stride_pattern", STRIDES)
def test_cost_agrees_with_a_count_over_the_real_layers(stride_pattern: str, width: float) -> None:
    config = ModelConfig(classes=5, width=width, stride_pattern=stride_pattern)
    model = MushroomCNN(config)
    found = shapes(model, 48)
    macs = model.head.weight.numel()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            _, height, breadth = found[name]
            macs += module.weight.numel() * height * breadth
    assert cost(config, 48) == Cost(parameters=sum(p.numel() for p in model.parameters()), flops=2 * macs)


def test_cost_is_what_torch_counts_at_every_point() -> None:
    """Alternates between sizes that halve evenly and sizes that do not."""
    for (strides, dilations, pooling, width), size in zip(GRID, itertools.cycle([33, 48, 33])):
        config = ModelConfig(
            classes=9, width=width, stride_pattern=strides, dilation_pattern=dilations, pooling=pooling
        )
        model = MushroomCNN(config).eval()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(pictures(1, size))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert cost(config, size) == Cost(parameters=parameters, flops=counter.get_total_flops()), config


@pytest.mark.parametrize(("pattern", "sides"), [
    ("late", [64, 64, 32, 16]), ("middle", [64, 32, 16, 16]), ("early", [32, 16, 16, 16]), ("every", [32, 32, 16, 8]),
])  # fmt: skip
def test_a_stride_pattern_halves_where_it_says(pattern: str, sides: list[int]) -> None:
    found = shapes(MushroomCNN(ModelConfig(classes=2, width=0.25, stride_pattern=pattern)), 64)
    assert [found[part][1] for part in ("stem", "block1", "block2", "block3")] == sides


@pytest.mark.parametrize("pattern", DILATIONS)
def test_a_dilation_pattern_sets_the_3x3_convs_of_the_blocks_and_keeps_the_size(pattern: str) -> None:
    model = MushroomCNN(ModelConfig(classes=2, width=0.25, dilation_pattern=pattern))
    found = [conv.dilation[0] for conv in convs(model) if conv.kernel_size == (3, 3)]
    assert found == [1, 1, *itertools.chain(*DILATIONS[pattern])]
    assert shapes(model, 32)["block3"] == (64, 8, 8)


@pytest.mark.parametrize("width", [0.25, pytest.param(0.5, marks=pytest.mark.long)])
def test_every_element_of_every_parameter_of_every_point_gets_a_gradient(width: float) -> None:
    for strides, dilations, pooling, point_width in GRID:
        if point_width != width:
            continue
        config = ModelConfig(
            classes=9, width=width, stride_pattern=strides, dilation_pattern=dilations, pooling=pooling
        )
        model = MushroomCNN(config).to(memory_format=torch.channels_last)
        # On a last map of 4 x 4 a kernel dilated by 3 reaches its corner once per picture, so this takes more pictures
        count = 128 if strides == "every" else 8
        functional.cross_entropy(model(pictures(count, 32)), torch.arange(count) % 9).backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or bool((p.grad == 0).any())]
        assert not still, config


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-2), ("bfloat16", 0.6)])
@pytest.mark.parametrize("pattern", STRIDES)
def test_gradients_of_narrow_networks_are_those_of_double_precision(
    pattern: str, precision: Precision, tolerance: float
) -> None:
    """oneDNN's backward of a strided 1x1 conv with 8 input channels crashed "middle" at 48 px (its issue 6035)."""
    config = ModelConfig(classes=9, width=0.25, stride_pattern=pattern, pooling="avg", dropout=0)
    model, exact = MushroomCNN(config), MushroomCNN(config).double()
    exact.load_state_dict(model.state_dict())
    model.to(memory_format=torch.channels_last)
    batch = pictures(32, 48)
    with autocast(torch.device("cpu"), precision):
        logits = model(batch)
    logits.float().square().sum().backward()
    exact(batch.double()).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).norm() <= tolerance * q.grad.norm(), name  # a few ReLUs flip, in bfloat16 many
    assert all(conv.stride == (1, 1) for conv in convs(model) if conv.kernel_size == (1, 1))


def test_a_subsampled_shortcut_is_the_strided_1x1_conv() -> None:
    block = ResidualBlock(16, 24, 2, (1, 1)).eval()
    shortcut = block.shortcut
    assert isinstance(shortcut, nn.Sequential)
    conv = shortcut[1]
    assert isinstance(conv, nn.Conv2d)
    for size in (8, 9):
        maps = torch.randn(2, 16, size, size)
        torch.testing.assert_close(conv(shortcut[0](maps)), functional.conv2d(maps, conv.weight, stride=2))


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)])
def test_a_conv_is_torchs_own_whatever_its_stride_and_dilation(stride: int, dilation: int) -> None:
    conv = Conv3x3(5, 7, stride, dilation)
    for size in (8, 9):
        maps = torch.randn(2, 5, size, size + 3, requires_grad=True)
        own = functional.conv2d(maps, conv.weight, stride=stride, dilation=dilation, padding=dilation)
        torch.testing.assert_close(conv(maps), own)
        ours = torch.autograd.grad(conv(maps).square().sum(), (maps, conv.weight))
        torch.testing.assert_close(ours, torch.autograd.grad(own.square().sum(), (maps, conv.weight)))


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("channels", [8, 16, 24, 40, 56, 72, 120])
def test_a_convs_gradients_in_bfloat16_are_those_of_float32(channels: int, dilation: int) -> None:
    """Those of a dilated conv with 24 channels were NaN, and those with 120 a third too small, without an error."""
    torch.manual_seed(0)
    conv = Conv3x3(channels, channels, 1, dilation).to(memory_format=torch.channels_last)
    maps = torch.randn(8, channels, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradients = {}
    for precision in ("float32", "bfloat16"):
        with autocast(torch.device("cpu"), precision):
            out = conv(maps)
        gradients[precision] = torch.autograd.grad(out, (maps, conv.weight), torch.sign(maps).detach().to(out.dtype))
    for exact, found in zip(gradients["float32"], gradients["bfloat16"], strict=True):
        assert (found - exact).norm() <= 0.02 * exact.norm()


def test_a_block_adds_and_then_rectifies_so_that_its_branch_can_subtract() -> None:
    block = ResidualBlock(8, 8, 1, (1, 1)).eval()
    last = block.branch[-1]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -1.0)
    maps = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(maps), torch.relu(maps - 1))


def test_pooling_is_torchs_maximum_and_average_side_by_side() -> None:
    maps = torch.randn(2, 6, 5, 7)
    highest = functional.adaptive_max_pool2d(maps, 1).flatten(1)
    mean = functional.adaptive_avg_pool2d(maps, 1).flatten(1)
    torch.testing.assert_close(GlobalPooling("max")(maps), highest)
    torch.testing.assert_close(GlobalPooling("avg")(maps), mean)
    torch.testing.assert_close(GlobalPooling("avg+max")(maps), torch.cat([highest, mean], dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 24, 12, 12), (3, 5, 7, 1), (1, 1)])
def test_dropout_zeroes_its_share_and_scales_up_the_rest(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    dropout = Dropout(0.25)
    maps = torch.ones(shape, dtype=dtype).movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    out = dropout(maps)
    assert (out.stride(), out.dtype) == (maps.stride(), dtype)
    assert set(out.detach().flatten().tolist()) <= {0.0, torch.tensor(4 / 3, dtype=dtype).item()}
    if maps.numel() > 1000:
        assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / maps.numel()) ** 0.5)
        rows = (out == 0).float().flatten(1)
        assert torch.corrcoef(rows).triu(1).abs().max() < 0.1  # pictures are dropped independently
    out.sum().backward()
    assert maps.grad is not None
    assert torch.equal(maps.grad, out.detach())  # the input is all ones, so the gradient is the mask


def test_dropout_is_seeded_and_does_nothing_outside_training() -> None:
    dropout, maps = Dropout(0.5), torch.randn(4, 8, 5, 5)
    torch.manual_seed(3)
    first, second = dropout(maps), dropout(maps)
    torch.manual_seed(3)
    assert torch.equal(dropout(maps), first)
    assert not torch.equal(first, second)
    assert dropout.eval()(maps) is maps


def test_dropout_follows_block_2_and_block_3_and_precedes_the_head() -> None:
    names = [name for name, _ in MushroomCNN(HAND_TUNED).named_children()]
    assert names == ["stem", "block1", "block2", "dropout2", "block3", "dropout3", "pooling", "dropout", "head"]
    assert [m.p for m in MushroomCNN(HAND_TUNED).modules() if isinstance(m, Dropout)] == [0.2] * 3


def test_without_dropout_there_is_no_such_layer_and_the_weights_keep_their_names() -> None:
    plain = MushroomCNN(ModelConfig(classes=9, dropout=0))
    assert not any(isinstance(module, Dropout) for module in plain.modules())
    assert plain.state_dict().keys() == MushroomCNN(HAND_TUNED).state_dict().keys()


def test_convolutions_start_with_the_variance_of_he() -> None:
    for conv in convs(MushroomCNN(HAND_TUNED)):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@given(width=st.floats(0.01, 8))
def test_channels_are_multiples_of_8_nearest_to_the_width(width: float) -> None:
    for channels, full in zip(ModelConfig(classes=2, width=width).channels, (32, 64, 128, 256), strict=True):
        assert channels % 8 == 0
        assert channels >= 8
        assert abs(channels - full * width) <= 4 or channels == 8


@pytest.mark.parametrize("size", [16, 17, 33])
def test_any_size_from_16_pixels_on_gives_logits(size: int) -> None:
    for pattern in STRIDES:
        model = MushroomCNN(ModelConfig(classes=3, width=0.25, stride_pattern=pattern, dilation_pattern="progressive"))
        assert model(pictures(2, size)).shape == (2, 3)


@pytest.mark.parametrize(("change", "message"), [
    ({"classes": 1}, "`classes >= 2` must hold, but got 1"),
    ({"width": 0}, "`0 < width <= 8` must hold, but got 0"),
    ({"width": float("nan")}, "`0 < width <= 8` must hold, but got nan"),
    ({"stride_pattern": "soon"}, "`stride_pattern` must be one of 'late', 'middle', 'early', 'every', but got 'soon'"),
    ({"dilation_pattern": "soon"}, "`dilation_pattern` must be one of 'none', 'consecutive', 'alternating', 'late', "
                                   "'progressive', but got 'soon'"),
    ({"pooling": "min"}, "`pooling` must be one of 'avg', 'max', 'avg+max', but got 'min'"),
    ({"dropout": 1.0}, "`0 <= dropout < 1` must hold, but got 1.0"),
])  # fmt: skip
def test_a_config_names_the_rule_the_value_and_the_choices(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ModelConfig(**{"classes": 9, **change})
