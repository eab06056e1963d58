"""Studies whose cases run in the tests' own process, and pages without their pictures rendered.

A process takes seconds to start, and a figure a second to render. Processes are tested in
test_study_runs.py, pictures in test_study_report.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

import kanpinn
from kanpinn.api.study_runner import Job
from kanpinn.errors import DivergedError


class HereRunner:
    """Runs the cases of a study in this process, one after the other."""

    def __init__(self, at_once: int, tell: Callable[[str], None]) -> None:
        self.errors: dict[str, str] = {}

    def run(self, jobs: Sequence[Job], done: int = 0) -> dict[str, str]:
        for job in jobs:
            with suppress(DivergedError):
                kanpinn.solve(job.config, out=job.run.path)
        return self.errors


def run_cases_here(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("kanpinn.api.studies.StudyRunner", HereRunner)


def leave_pictures_blank(patch: pytest.MonkeyPatch) -> None:
    """Figures of a page are made, but not rendered."""
    patch.setattr("kanpinn.plotting.style.to_png", lambda figure: b"not rendered")
