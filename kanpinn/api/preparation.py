"""From a config to everything a run needs, checked in full, with nothing trained or written."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from kanpinn.api.memory_needs import check_memory
from kanpinn.config import (
    RunConfig,
    load_config,
    naming,
    parse_config,
    read_yaml,
    run_options,
    to_dict,
)
from kanpinn.config.convert import plain
from kanpinn.errors import ConfigError, ProblemError
from kanpinn.kernels import kernels_unused
from kanpinn.problem import Problem, build_system
from kanpinn.registry import GROUP, build_problem, problem_source
from kanpinn.sampling import sample_graded, stream
from kanpinn.solution.origin import AnyProblem
from kanpinn.training import MultilevelRun
from kanpinn.training.block_data import BlockData, residual_rows
from kanpinn.training.evaluation import held_out_equations, reference_values

AnyConfig = str | Path | Mapping[str, Any] | RunConfig

TRIAL_POINTS = 8  # that every block is tried on before a run begins
REFERENCE_POINTS = 200  # that the reference is tried on, spread over the evaluation points


@dataclass(frozen=True)
class Prepared:
    """A run that could begin.

    Attributes:
        config: resolved, with the optimisers chosen for phases that were ``auto``. This is what
            a run saves: a resumed run that would choose otherwise is refused like any other config.
        problem: what is to be solved.
        run: the engine on the initial state.
        source: the file of a problem that is not a registered one, if it has a file.
    """

    config: RunConfig
    problem: Problem
    run: MultilevelRun
    source: Path | None


def prepare(
    config: AnyConfig, overrides: Sequence[str] = (), problem: AnyProblem | None = None
) -> Prepared:
    """Resolve a config and build problem, model and hierarchy.

    Args:
        config: path of a YAML file, a mapping as in one, or a resolved config.
        overrides: ``KEY=VALUE``, as on the command line.
        problem: an instance or a class, instead of what the config says of the problem.

    Raises:
        ConfigError: naming the source, the key, what was found and what is allowed.
    """
    own = None
    if problem is None:
        resolved = _resolve(config, overrides)
        located = problem_source(resolved.problem.name)
        source = located.path if located else None
    else:
        own = _instance(problem)
        resolved = _resolve_around(own, config, overrides)
        source = None if _registered_name(type(own)) else _source_file(type(own))
    with naming(resolved):
        found = own if own is not None else build_problem(resolved.problem)
        run = MultilevelRun(found, run_options(resolved))
        run.check_refinements()
        _check_points(run)
        check_memory(run)
        run.check_scalars()
        _check_measures(run)
    chosen = dataclasses.replace(resolved, training=run.options.training)
    return Prepared(chosen, found, run, source)


def _resolve(config: AnyConfig, overrides: Sequence[str]) -> RunConfig:
    if isinstance(config, RunConfig):
        if not overrides:
            return config
        return parse_config(to_dict(config), config.source, overrides=overrides)
    if isinstance(config, Mapping):
        return parse_config({"name": _name_of(config), **config}, overrides=overrides)
    return load_config(config, overrides)


def _name_of(config: Mapping[str, Any]) -> str:
    """A run name for a mapping: that of its problem."""
    problem = config.get("problem")
    named = problem.get("name") if isinstance(problem, Mapping) else problem
    stem = str(named or "run").rpartition(":")[2]
    return "".join(c for c in stem if c.isalnum() or c in "._+-").lstrip("._+-")[:100] or "run"


def _check_points(run: MultilevelRun) -> None:
    """Evaluate every block at a few points: what cannot be evaluated shows before any training.

    Raises:
        ProblemError: if a residual is not finite there.
    """
    names, options = run.problem.domain.names, run.options
    # Any points will do, and these need neither a slow import nor a compiler.
    sampling = dataclasses.replace(options.sampling, method="random")
    generator = torch.Generator().manual_seed(options.seed)
    system = build_system(run.problem, options.model, generator)
    for block in run.blocks:
        seed = stream(options.seed)
        points = sample_graded(block.region, TRIAL_POINTS, sampling, names, seed)
        points = tuple(
            site.rows(slice(TRIAL_POINTS // block.group * block.group)) for site in points
        )
        if not len(points[0]):
            continue
        with kernels_unused():
            rows = residual_rows(BlockData(block, points, system), system)
        if not bool(torch.isfinite(rows).all()):
            row = int((~torch.isfinite(rows)).any(1).nonzero()[0])
            at = ", ".join(f"{value:g}" for value in points[0].x[row * block.group].tolist())
            raise ProblemError(
                f"residual {block.name!r} is not finite at ({at}) for the initial network: look "
                "for NaN values, divisions by zero and roots of negative numbers"
            )


def _check_measures(run: MultilevelRun) -> None:
    """Try the reference at some points, and refuse targets that nothing could be compared with.

    Raises:
        ProblemError: if the reference is of the wrong shape or not finite.
        ConfigError: naming the target, and what the problem lacks.
    """
    problem, target = run.problem, run.options.training.target
    x = problem.evaluation_points()
    values = reference_values(problem, x[:: max(1, len(x) // REFERENCE_POINTS)])
    if target.rel_l2 is not None and values is None:
        raise ConfigError(
            f"training.target.rel_l2: found {target.rel_l2:g}, allowed: null, because the problem "
            "has no reference"
        )
    if target.heldout_residual is not None and not held_out_equations(problem, run.blocks):
        raise ConfigError(
            f"training.target.heldout_residual: found {target.heldout_residual:g}, allowed: null, "
            "because the problem has no points that are not trained on (held_out_blocks)"
        )


# --- problems that are given as Python objects --------------------------------------------------
def _instance(problem: AnyProblem) -> Problem:
    found = problem() if isinstance(problem, type) else problem
    if not isinstance(found, Problem):
        raise ConfigError(
            f"problem: found {type(found).__name__}, allowed: a kanpinn.Problem, class or instance"
        )
    return found


def _resolve_around(problem: Problem, config: AnyConfig, overrides: Sequence[str]) -> RunConfig:
    """The config with this problem in the place of its own."""
    source, folder = "config", None
    if isinstance(config, RunConfig):
        data, source = to_dict(config), config.source
    elif isinstance(config, Mapping):
        data = {"name": type(problem).__name__.strip("_") or "run", **config}
    else:
        data, source, folder = read_yaml(Path(config)), str(config), Path(config).parent
    for text in overrides:
        if text.partition("=")[0].strip().split(".")[0] == "problem":
            raise ConfigError(
                f"override {text[:60]!r}: the problem is given as an object; set it there"
            )
    data = {**data, "problem": {**_parameters(problem), "name": _reference(type(problem))}}
    return parse_config(data, source, folder, overrides, import_problem=False)


def _parameters(problem: Problem) -> dict[str, Any]:
    """The fields of a dataclass, as far as a config can hold them."""
    if not dataclasses.is_dataclass(problem):
        return {}
    found = {}
    for entry in dataclasses.fields(problem):
        try:
            found[entry.name] = plain(getattr(problem, entry.name))
        except (ConfigError, AttributeError):
            continue
    return found


def _reference(cls: type[Problem]) -> str:
    """What a config would call the class: its registered name, ``file.py:Class``, or its own."""
    registered, file = _registered_name(cls), _source_file(cls)
    if registered:
        return registered
    if file is not None and file.suffix == ".py" and cls.__qualname__.isidentifier():
        return f"{file}:{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _registered_name(cls: type[Problem]) -> str | None:
    target = f"{cls.__module__}:{cls.__qualname__}"
    return next((p.name for p in entry_points(group=GROUP) if p.value == target), None)


def _source_file(cls: type[Problem]) -> Path | None:
    """The file a class was defined in, ``None`` for one typed at a prompt."""
    try:
        file = inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return None
    return Path(file).resolve() if file and Path(file).is_file() else None
