"""What all tests share: one thread, no display, the devices to test on, a fixed seed."""

from __future__ import annotations

import os

import pytest
import torch

# The tests' tensors are tiny: more threads cost more than they give, and one gives the same sums
# on every machine. OMP_NUM_THREADS in the environment says otherwise.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device this machine has; a test with this fixture runs once on each."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed; draw there, then move to the device under test."""
    return torch.Generator().manual_seed(20260304)
