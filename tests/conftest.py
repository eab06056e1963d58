"""What all tests share: one thread, no display, the devices to test on, a fixed seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
import torch
from elsewhere import ELSEWHERE

import kanpinn
from kanpinn.api.study_runner import Job
from kanpinn.errors import DivergedError

# The tests' tensors are tiny: more threads cost more than they give, and one gives the same sums
# on every machine. OMP_NUM_THREADS in the environment says otherwise.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
os.environ.setdefault("MPLBACKEND", "Agg")


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


class HereRunner:
    """Runs the cases of a study in this process, one after the other: it need not start anew."""

    def __init__(self, at_once: int, tell: Callable[[str], None]) -> None:
        self.errors: dict[str, str] = {}

    def run(self, jobs: Sequence[Job], done: int = 0) -> dict[str, str]:
        for job in jobs:
            with suppress(DivergedError):
                kanpinn.solve(job.config, out=job.run.path)
        return self.errors


@pytest.fixture
def studies_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what a study makes of its runs; test_study_runs.py has those of processes."""
    monkeypatch.setattr("kanpinn.api.studies.StudyRunner", HereRunner)
