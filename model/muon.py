"""Muon: an optimizer whose steps are of one size in all directions that the gradient has, however small it is there.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with weights of a fixed norm, as in airbench94_muon.py
(https://github.com/KellerJordan/cifar10-airbench). torch.optim.Muon takes only matrices and does not fix their norm.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

ADAMW_LR = 0.25
"""Learning rate of AdamW for the other parameters, as a share of Muon's."""

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: x -> a x + b x^3 + c x^5 lifts small singular values fastest, to about 0.7 to 1.2."""


class Muon(AdamW):
    """Muon for convolutions that are followed by batch norm; AdamW, at a share of the learning rate, for the rest.

    Batch norm undoes the scale of a convolution, so only the direction of its weights counts. A step with learning rate
    lr moves them by lr times their norm and then restores the norm; weight decay would change nothing.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float, fused: bool) -> None:
        super().__init__(groups, lr=lr, fused=fused)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step. Gradients of convolutions are used up: they are None afterwards."""
        bad: Tensor | None = getattr(self, "found_inf", None)
        lrs = [group["lr"] for group in self.param_groups]
        for group, lr in zip(self.param_groups, lrs, strict=True):
            for weight in group["params"]:
                if weight.ndim == 4 and weight.grad is not None:
                    self._turn(weight, lr, bad)
                    weight.grad = None  # AdamW passes over it
            group["lr"] = ADAMW_LR * lr
        super().step()
        for group, lr in zip(self.param_groups, lrs, strict=True):
            group["lr"] = lr

    def _turn(self, weight: Tensor, lr: float, bad: Tensor | None) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())  # AdamW expects it of every parameter when a state is loaded
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum_buffer"]
        kept: float | Tensor = 1.0
        gradient: Tensor = weight.grad  # pyright: ignore[reportAssignmentType] - `step` has checked it
        if bad is not None:  # a step that is blocked on the device, as fused optimizers do it, changes nothing
            kept = 1 - bad
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        mean.lerp_(gradient, kept * (1 - self.momentum))
        update = gradient.lerp(mean, self.momentum)  # Nesterov's
        # The rows are filters; channels_last makes this order of the columns a view
        rows = update.permute(0, 2, 3, 1)
        turn = orthogonal(rows.flatten(1)).view_as(rows).permute(0, 3, 1, 2)
        norm = weight.norm()
        moved = weight - turn * (lr * norm / turn.norm().clamp(min=1e-12))
        moved *= norm / moved.norm()
        weight.copy_(moved if bad is None else torch.where(bad > 0, weight, moved))


def orthogonal(matrix: Tensor, iterations: int = 3) -> Tensor:
    """Return roughly the orthogonal factor of a matrix (R, C): its singular vectors, with singular values near 1.

    Newton-Schulz iterations of the small side's Gram matrix, which cost half as much as those of a wide matrix itself.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-12)
    gram = wide @ wide.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
    wide = product @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
