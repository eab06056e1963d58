"""pykan's MultKAN in its speed mode, with nested reverse mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case

from contestants.nested import gradient_step


def prepare(case: Case) -> Callable[[], object]:
    from kan import KAN

    torch.set_num_threads(1)
    dtype = getattr(torch, case.dtype)
    torch.set_default_dtype(dtype)
    model = KAN(
        width=list(case.widths), grid=case.intervals, k=case.degree, seed=1, auto_save=False
    )
    return gradient_step(model.speed().to(dtype), case, case.chunk)
