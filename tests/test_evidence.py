"""Where a network looked: the parts add up to what the network computes, and the picture shows where they are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.evidence import SHADE, evidence, spotlight
from model.network import DILATIONS, STRIDES, ModelConfig, MushroomCNN, Pooling


@settings(max_examples=15, deadline=None)
@given(
    stride=st.sampled_from(list(STRIDES)),
    dilation=st.sampled_from(list(DILATIONS)),
    pooling=st.sampled_from(["avg", "max", "avg+max"]),
    side=st.integers(16, 35),
    classes=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_the_parts_add_up_to_the_logit(
    stride: str, dilation: str, pooling: Pooling, side: int, classes: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = ModelConfig(
        classes=classes, width=0.25, stride_pattern=stride, dilation_pattern=dilation, pooling=pooling, dropout=0.3
    )
    network = MushroomCNN(model).eval()
    pictures, labels = torch.randn(3, 3, side, side), torch.arange(3) % classes
    with torch.inference_mode():
        logits = network(pictures) - network.head.bias
        lead = logits[torch.arange(3), labels] - logits.mean(dim=1)
    parts = evidence(network, pictures, labels)
    assert parts.shape[1] == parts.shape[2] > 1
    torch.testing.assert_close(parts.sum(dim=(1, 2)), lead, atol=1e-4 * float(logits.abs().max() + 1), rtol=0)


def test_the_part_of_a_maximum_is_where_the_maximum_is() -> None:
    """A class that only one channel speaks for, so that the place is known."""
    torch.manual_seed(0)
    network = MushroomCNN(ModelConfig(classes=2, width=0.25, pooling="max", dropout=0)).eval()
    torch.nn.init.zeros_(network.head.weight)
    network.head.weight.data[0, 5] = 2.0
    maps: list[torch.Tensor] = []
    network.pooling.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    parts = evidence(network, torch.randn(1, 3, 32, 32), torch.tensor([0]))[0]
    channel = maps[0][0, 5]
    assert channel.max() > 0
    assert parts.argmax() == channel.argmax()
    assert parts.max() == pytest.approx(float(channel.max()), rel=1e-5)  # half of 2.0, as the mean of the classes is 1
    assert parts.count_nonzero() == 1


def test_bright_is_what_speaks_for_a_class() -> None:
    parts = np.zeros((8, 8), np.float32)
    parts[1, 6] = 3.0
    parts[6, 1] = -9.0
    picture = np.asarray(spotlight(np.full((32, 32, 3), 200, np.uint8), parts, 64)).astype(int)
    assert picture.shape == (64, 64, 3)
    assert picture[12, 52].min() > 150  # the place of the evidence
    assert abs(picture[52, 12] - 200 * (1 - SHADE)).max() <= 2
    assert abs(picture[52, 52] - 200 * (1 - SHADE)).max() <= 2
    dark = np.asarray(spotlight(np.full((32, 32, 3), 200, np.uint8), -parts[::-1] * 0, 64)).astype(int)
    assert abs(dark - 200 * (1 - SHADE)).max() <= 2  # nothing speaks for it
