"""kanpinn's KAN without its compiled kernels."""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ["KANPINN_KERNELS"] = "torch"

from case import Case

from contestants import kanpinn_network


def prepare(case: Case) -> Callable[[], object]:
    return kanpinn_network.prepare(case, case.chunk)
