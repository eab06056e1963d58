"""The baseline: dense bases by the Cox-de Boor recursion, nested reverse mode, in chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case
from torch import Tensor, nn

from contestants.nested import gradient_step


class DenseSplines(nn.Module):
    """``y = B(tanh x) C`` with all basis functions of every channel."""

    def __init__(self, width: int, following: int, case: Case) -> None:
        super().__init__()
        step, degree = 2 / case.intervals, case.degree
        numbers = torch.arange(-degree, case.intervals + degree + 1, dtype=torch.float64)
        self.register_buffer("knots", numbers * step - 1)
        self.degree = degree
        features = case.intervals + degree
        scale = (width * 0.2) ** -0.5
        self.coefficients = nn.Parameter(
            scale * torch.randn(width * features, following, dtype=torch.float64)
        )

    def forward(self, x: Tensor) -> Tensor:
        x, t = torch.tanh(x)[..., None], self.knots
        basis = ((x >= t[:-1]) & (x < t[1:])).to(x.dtype)
        for k in range(1, self.degree + 1):
            rising = (x - t[: -k - 1]) / (t[k:-1] - t[: -k - 1])
            falling = (t[k + 1 :] - x) / (t[k + 1 :] - t[1:-k])
            basis = rising * basis[..., :-1] + falling * basis[..., 1:]
        return basis.flatten(1) @ self.coefficients


def prepare(case: Case) -> Callable[[], object]:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    pairs = zip(case.widths, case.widths[1:], strict=False)
    layers = [DenseSplines(width, following, case) for width, following in pairs]
    network = nn.Sequential(*layers).to(getattr(torch, case.dtype))
    return gradient_step(network, case, case.chunk)
