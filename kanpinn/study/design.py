"""A study's design: a base config, the axes that its cases vary, and the work each may take."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Gt

from kanpinn.errors import ConfigError
from kanpinn.training import TrainingOptions

LONGEST_NAME = 80  # characters of a case's folder
WORK = "training.work"
BASE = "base"  # the key of a case's own base config
TOTAL = "budget.total"  # the key of the work of a case, instead of that of all

Changes = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The same work for all cases, in equal parts for their levels."""

    of: Annotated[Literal["operations", "evaluations"], "what is counted"]
    total: Annotated[float, Gt(0), "how many a case is given in all"]

    def work(self, training: TrainingOptions) -> dict[str, Any]:
        """What ``training.work`` is with it: ``total / n`` for each of the ``n`` levels with steps.

        A level is trained once in every time window, and in the first one with all initial networks
        that there are (``training.starts``): each training has as much of the level's part, rounded
        down. It ends with the step that reaches that, so that a case may have more than the total,
        by less than a step for each training.

        Raises:
            ConfigError: if not even one is left for every training.
        """
        levels = [level for level in range(training.levels) if training.steps_on(level)]
        counts = {
            level: training.windows - 1 + (training.starts.on(place) if training.starts else 1)
            for place, level in enumerate(levels)
        }
        least = len(levels) * max(counts.values())
        if self.total < least:
            raise ConfigError(
                f"budget.total: found {self.total:g}, allowed: at least {least}, one for every "
                "training of a level"
            )
        parts = {level: int(self.total // (len(levels) * n)) for level, n in counts.items()}
        several = len(set(parts.values())) > 1
        shares = tuple(parts.get(level, 0) for level in range(training.levels))
        return {"of": self.of, "per_level": shares if several else max(shares)}


@dataclass(frozen=True)
class Case:
    """One run of a study.

    Attributes:
        labels: by axis, the value in words.
        changes: dotted keys of the base config, and their values here.
        budget: of work, if there is one.
    """

    labels: Mapping[str, str]
    changes: Changes
    budget: Budget | None = None

    @property
    def title(self) -> str:
        """All labels in a line."""
        return ", ".join(f"{axis}={label}" for axis, label in self.labels.items()) or "base"

    @property
    def folder(self) -> str:
        """Name of the case's folder: readable, and different for different changes."""
        asked = self.changes if self.budget is None else [self.changes, asdict(self.budget)]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.title.replace(", ", "_"))
        return f"{words[:LONGEST_NAME]}-{digest}"

    @property
    def overrides(self) -> list[str]:
        """The changes as on the command line of ``solve``."""
        changed = ((key, value) for key, value in self.changes.items() if key != BASE)
        return [f"{key}={json.dumps(value)}" for key, value in changed]

    @property
    def base(self) -> Any:
        """Path of its own base config, relative to the study's file; ``None`` without one."""
        return self.changes.get(BASE)

    def work_override(self, training: TrainingOptions) -> list[str]:
        """What the budget makes of ``training.work``, as on the command line; empty without one.

        Args:
            training: of this case, without it.

        Raises:
            ConfigError: if the case, or the base config, says itself how much work there is.
        """
        if self.budget is None:
            return []
        own = [key for key in self.changes if key == WORK or key.startswith(f"{WORK}.")]
        if own or training.work is not None:
            raise ConfigError(
                f"{WORK}: contradicts the study's budget, which sets it; leave one of them out"
            )
        return [f"{WORK}={json.dumps(self.budget.work(training))}"]


@dataclass(frozen=True)
class Design:
    """A base config and what a study varies in it; its cases are all combinations.

    Attributes:
        name: of the study.
        base: path of the base config, relative to the study's file, or the config itself.
            ``None`` where every case has its own.
        axes: by name, the labels of its values and what each changes. Listed cases are the axis
            ``case``.
        set: changed in every case, on top of what the axes change.
        budget: of work, for every case that does not have a ``budget.total`` of its own.
        variant: which of the study's variants this is.
        analyses: what is measured beside, or of the runs, as in the file.
    """

    name: str
    base: str | Mapping[str, Any] | None
    axes: Mapping[str, Mapping[str, Changes]] = field(default_factory=dict)
    set: Changes = field(default_factory=dict)
    budget: Budget | None = None
    variant: str | None = None
    analyses: tuple[Mapping[str, Any], ...] = ()

    @property
    def folder(self) -> str:
        """Name of its folder, unless another is asked for."""
        return self.name if self.variant is None else f"{self.name}-{self.variant}"

    def cases(self) -> list[Case]:
        """All combinations, the last axis fastest; none where there are analyses alone."""
        return list(self._combinations()) if self.axes or self.base is not None else []

    def as_dict(self) -> dict[str, Any]:
        """As in a study's file: what is read back is the same design, but for its variant."""
        data: dict[str, Any] = {"name": self.name}
        if self.base is not None:
            data["base"] = self.base
        if self.axes:
            data["axes"] = {axis: dict(values) for axis, values in self.axes.items()}
        if self.set:
            data["set"] = dict(self.set)
        if self.budget is not None:
            data["budget"] = asdict(self.budget)
        if self.analyses:
            data["analyses"] = [dict(entry) for entry in self.analyses]
        return data

    def _combinations(self) -> Iterator[Case]:
        for combination in itertools.product(*(axis.items() for axis in self.axes.values())):
            labels = dict(zip(self.axes, (label for label, _ in combination), strict=True))
            changes: dict[str, Any] = {}
            for part in (*(part for _, part in combination), self.set):
                for key, value in part.items():
                    changes.pop(key, None)  # the last one counts, in its own turn
                    changes[key] = value
            total, budget = changes.pop(TOTAL, None), self.budget
            if total is not None and budget is not None:
                budget = replace(budget, total=float(total))
            yield Case(labels, changes, budget)
