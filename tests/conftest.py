"""What all tests share: one thread, no display, the devices to test on, a fixed seed."""

from __future__ import annotations

import os

import pytest
import torch
from elsewhere import ELSEWHERE
from here import leave_pictures_blank, run_cases_here

# The tests' tensors are tiny: more threads cost more than they give, and one gives the same sums
# on every machine. OMP_NUM_THREADS in the environment says otherwise.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process a test starts compiles kanpinn


@pytest.fixture(params=["cpu", "elsewhere", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device this machine has, and the one of tests/elsewhere.py; a test runs on each."""
    if request.param == "elsewhere":
        return ELSEWHERE
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed; draw there, then move to the device under test."""
    return torch.Generator().manual_seed(20260304)


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of pages that have figures, whatever these look like."""
    leave_pictures_blank(monkeypatch)


@pytest.fixture
def studies_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what a study makes of its runs."""
    run_cases_here(monkeypatch)
