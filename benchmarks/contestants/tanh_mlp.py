"""A plain tanh network of the same widths in PyTorch, with nested reverse mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case
from torch import nn

from contestants.nested import gradient_step


def prepare(case: Case) -> Callable[[], object]:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dtype = getattr(torch, case.dtype)
    layers: list[nn.Module] = []
    for width, following in zip(case.widths, case.widths[1:], strict=False):
        layers += [nn.Linear(width, following), nn.Tanh()]
    return gradient_step(nn.Sequential(*layers[:-1]).to(dtype), case)
