"""Muon: convolutions turn by orthogonal steps of a given size, all else is AdamW's."""

import math

import pytest
import torch
from torch import Tensor, nn

from model.muon import ADAMW_LR, Muon, orthogonal

LR, MOMENTUM = 0.05, 0.9


def conv(outputs: int = 8, inputs: int = 4, *, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator, dtype=torch.float64)
    return nn.Parameter(weight.contiguous(memory_format=torch.channels_last))


def muon(*parameters: nn.Parameter, momentum: float = MOMENTUM) -> Muon:
    return Muon([{"params": list(parameters), "weight_decay": 0.0}], lr=LR, momentum=momentum, fused=True)


def after_steps(optimizer: Muon, weight: nn.Parameter, gradients: list[Tensor]) -> Tensor:
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize("shape", [(16, 27), (32, 32), (64, 16), (128, 1152)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = torch.linalg.svd(matrix, full_matrices=False)
    values = before.S / before.S.norm()
    large = values > 0.02
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert ((values > 0.6) & (values < 1.3))[large].all()
    found = before.U.T @ orthogonal(matrix) @ before.Vh.T
    torch.testing.assert_close(found, torch.diag(values), rtol=0, atol=1e-9)


def test_a_step_has_the_size_of_the_lr_and_keeps_the_norm() -> None:
    before, gradient = conv(), conv(seed=1).detach()
    after = after_steps(muon(weight := nn.Parameter(before.detach().clone())), weight, [gradient])
    norm = before.norm().item()
    assert after.norm().item() == pytest.approx(norm, rel=1e-12)
    # Before its norm is restored, the weight moves by exactly LR * norm against the orthogonal gradient
    turn = orthogonal(gradient.flatten(1)).view_as(gradient)
    moved = before.detach() - turn * (LR * norm / turn.norm())
    torch.testing.assert_close(after, moved * (norm / moved.norm()), rtol=1e-9, atol=1e-12)


def test_the_scale_of_the_gradients_does_not_matter() -> None:
    gradients = [conv(seed=seed).detach() for seed in range(1, 4)]
    one, other = conv(), conv()
    small = after_steps(muon(one), one, gradients)
    large = after_steps(muon(other), other, [1e6 * gradient for gradient in gradients])
    torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-12)


def test_momentum_is_nesterovs() -> None:
    gradients = [conv(seed=seed).detach() for seed in range(1, 4)]
    weight, plain = conv(), conv()
    after = after_steps(muon(weight), weight, gradients)

    mean, without = torch.zeros_like(gradients[0]), muon(plain, momentum=1e-12)
    for gradient in gradients:
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        expected = after_steps(without, plain, [MOMENTUM * mean + (1 - MOMENTUM) * gradient])
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)


def test_a_zero_gradient_changes_nothing() -> None:
    weight = conv()
    before = weight.detach().clone()
    torch.testing.assert_close(after_steps(muon(weight), weight, [torch.zeros_like(before)]), before)


def test_all_other_parameters_are_adamws_at_a_share_of_the_lr() -> None:
    kernel = conv()
    matrices = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    ours = Muon([{"params": [kernel, matrices[0]], "weight_decay": 0.1}], lr=LR, momentum=MOMENTUM, fused=True)
    torchs = torch.optim.AdamW([matrices[1]], lr=ADAMW_LR * LR, weight_decay=0.1, fused=True)
    for step in range(3):
        kernel.grad = torch.ones_like(kernel)
        for matrix in matrices:
            matrix.grad = torch.full_like(matrix, math.sin(step + 1))
        ours.step()
        torchs.step()
    assert torch.equal(*matrices)
    assert ours.param_groups[0]["lr"] == LR
