"""The config of a run: from YAML and overrides to frozen, fully checked options, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from pydantic.types import StringConstraints

from kanpinn.config.checks import STUDY_KEYS, check_model, check_training
from kanpinn.config.convert import Errors, convert, convert_fields, one_line, plain, show
from kanpinn.config.hints import keys_of
from kanpinn.config.overrides import apply_overrides, split_override
from kanpinn.config.yaml_text import read_yaml
from kanpinn.errors import ConfigError, DeviceError
from kanpinn.models import KANOptions, ModelOptions
from kanpinn.problem import Problem
from kanpinn.registry import absolute_name, problem_class
from kanpinn.sampling import SamplingOptions
from kanpinn.training import RunOptions, TrainingOptions
from kanpinn.training.run_options import DTYPES

_DEVICE = re.compile(r"(auto|cpu|cuda(:\d{1,3})?)\Z")


@dataclass(frozen=True, kw_only=True)
class ProblemConfig:
    """Which problem is solved, and with which parameters.

    Attributes:
        name: registered, or ``/absolute/path/to/file.py:ClassName``.
        parameters: all parameters of the problem, defaults filled in; paths are absolute.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is made of."""

    name: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100),
        "name of the run, of its folder too; by default that of the config file",
    ]
    problem: Annotated[
        ProblemConfig,
        "a registered name or file.py:ClassName, or a mapping with name and parameters",
    ]
    model: Annotated[ModelOptions, "the networks"] = field(default_factory=KANOptions)
    sampling: Annotated[SamplingOptions, "where the equations are to hold"] = field(
        default_factory=SamplingOptions
    )
    training: Annotated[TrainingOptions, "levels, phases and budgets"] = field(
        default_factory=TrainingOptions
    )
    seed: Annotated[int, Ge(0), "seed of everything that is random"] = 1234
    device: Annotated[str, "cpu, cuda, cuda:INDEX, or auto: a GPU if there is one"] = "cpu"
    dtype: Annotated[
        Literal["float64", "float32"],
        "type of all numbers, where training.precision names none",
    ] = "float64"
    threads: Annotated[
        Annotated[int, Gt(0), Le(1024)] | None,
        "threads on the CPU, one per core by default; they share chunks of points, and from 2,000 "
        "parameters on the finest level on, the optimisers' operations as well",
    ] = None
    memory_mib: Annotated[
        Annotated[float, Gt(0)] | None,
        "MiB that a run may take beside the program itself; rows evaluated at once, kept features "
        "and linear systems follow from it, and what could not fit is refused",
    ] = None
    cuda_graphs: Annotated[
        bool,
        "on a GPU, record an evaluation's operators once and launch them together from then on, "
        "which small networks gain by",
    ] = True
    figures: Annotated[bool, "draw figures at the end of the run"] = True
    source: str = field(default="config", compare=False, metadata={"hidden": True})

    def to_dict(self) -> dict[str, Any]:
        """The resolved config; see :func:`to_dict`."""
        return to_dict(self)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a YAML file, with dotted overrides such as ``model.width=8``.

    Paths in it, overrides included, are relative to the file's folder.

    Raises:
        ConfigError: naming the file, the key's path, what was found and what is allowed.
    """
    path = Path(path)
    return parse_config(read_yaml(path), str(path), path.parent, overrides)


def parse_config(
    data: Mapping[str, Any],
    source: str = "config",
    base_dir: Path | None = None,
    overrides: Sequence[str] = (),
    import_problem: bool = True,
) -> RunConfig:
    """The config that plain data stand for.

    Args:
        data: what a YAML file holds, or what :func:`to_dict` gave.
        source: names the data in messages; its stem is the default of the run's name.
        base_dir: what paths are relative to; the current folder by default.
        overrides: ``KEY=VALUE``, the value in YAML.
        import_problem: whether the problem's class may be imported, which runs its file. If
            not, its parameters are taken as they are.

    Raises:
        ConfigError: with a line for each of up to five errors.
    """
    if "problem" not in data and STUDY_KEYS & data.keys():
        raise ConfigError(f"{source}: the config of a study, not of a run: see 'kanpinn study'")
    folder = Path.cwd() if base_dir is None else base_dir
    origins: dict[str, str] = {}
    try:
        given: dict[str, Any] = {}
        for text in overrides:
            key, value = split_override(text)
            given.pop(key, None)  # the last one counts, in its own turn
            given[key], origins[key] = value, text[:60]
        resolved = {"name": _default_name(source), **apply_overrides(data, given)}
    except ConfigError as error:
        raise ConfigError(one_line(f"{source}: {error}")) from error
    errors = Errors()
    arguments = convert_fields(resolved, RunConfig, "", errors, done=("problem",))
    if "problem" not in resolved:
        errors.add("problem", "missing, allowed: a registered name, file.py:ClassName or a mapping")
    else:
        arguments["problem"] = _problem(resolved["problem"], folder, errors, import_problem)
    _check_values(arguments, errors)
    errors.check(source, origins)
    return RunConfig(**arguments, source=source)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain data, with every default: ``parse_config`` gives it back.

    Paths and the names of problems in files are absolute, so it means the same in any folder.
    """
    data: dict[str, Any] = plain(config)
    parameters = data["problem"].pop("parameters")
    data["problem"].update(parameters)
    return data


def run_options(config: RunConfig) -> RunOptions:
    """What the training takes, with the device that is used.

    Raises:
        DeviceError: if the device is unknown, or this machine does not have it.
    """
    with naming(config):
        device = resolve_device(config.device)
    return RunOptions(
        model=config.model,
        training=config.training,
        sampling=config.sampling,
        seed=config.seed,
        dtype=DTYPES[config.dtype],
        device=device,
        workers=_workers(config.threads) if device.type == "cpu" else 1,
        memory_mib=config.memory_mib,
        graphs=config.cuda_graphs,
    )


def _workers(threads: int | None) -> int:
    """The threads asked for, or one per core that this process may use."""
    if threads is not None:
        return threads
    usable = getattr(os, "sched_getaffinity", None)  # where the system has it
    return len(usable(0)) if usable else os.cpu_count() or 1


def resolve_device(name: str) -> torch.device:
    """The device of a name: ``auto`` (CUDA if there is any), ``cpu``, ``cuda``, ``cuda:INDEX``.

    Raises:
        DeviceError: if it is unknown, or this machine does not have it.
    """
    if not _DEVICE.match(name):
        raise DeviceError(f"device: {_device_fault(name)}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if count == 0:
        raise DeviceError(
            f"device: found {name!r}, but there is no CUDA device here (PyTorch "
            f"{torch.__version__}); allowed: auto, cpu"
        )
    if index >= count:
        known = ", ".join(f"cuda:{k}" for k in range(count))
        raise DeviceError(f"device: found {name!r}, allowed here: auto, cpu, cuda, {known}")
    return torch.device("cuda", index)


@contextmanager
def naming(config: RunConfig) -> Iterator[None]:
    """Put the config's file in front of the message of every config error raised inside.

    For what needs the problem to be checked: widths, orders, coordinates, blocks.
    """
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(f"{config.source}: "):
            raise
        raise type(error)(f"{config.source}: {error}") from error


# --- pieces -------------------------------------------------------------------------------------
def _default_name(source: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(source).stem)
    return stem.lstrip("._+-")[:100] or "run"


def _device_fault(name: str) -> str:
    return f"found {show(name)}, allowed: auto, cpu, cuda, cuda:INDEX"


def _check_values(arguments: Mapping[str, Any], errors: Errors) -> None:
    """What the type hints do not say; only of parts that were converted."""
    if is_dataclass(model := arguments.get("model")):
        check_model(model, errors)  # type: ignore[arg-type]
    if is_dataclass(training := arguments.get("training")):
        check_training(training, errors)  # type: ignore[arg-type]
    device = arguments.get("device", "auto")
    if isinstance(device, str) and not _DEVICE.match(device):
        errors.add("device", _device_fault(device))


def _problem(value: Any, folder: Path, errors: Errors, import_problem: bool) -> Any:
    """The problem's config; its class is found, its parameters are held to its type hints."""
    data = {"name": value} if isinstance(value, str) else value
    path = "problem" if isinstance(value, str) else "problem.name"
    if not isinstance(data, Mapping):
        wanted = "a registered name, file.py:ClassName or a mapping with name and parameters"
        return errors.add("problem", f"found {show(value)}, allowed: {wanted}")
    name = data.get("name")
    if not isinstance(name, str):
        found = f"found {show(name)}" if "name" in data else "missing"
        return errors.add(path, f"{found}, allowed: a registered name or file.py:ClassName")
    given = {key: entry for key, entry in data.items() if key != "name"}
    if not import_problem:
        return ProblemConfig(name=absolute_name(name, folder), parameters=given)
    try:
        cls = problem_class(name, folder)
        parameters = _parameters(cls, given, folder, errors)
    except ConfigError as error:
        return errors.add(path, str(error))
    return ProblemConfig(name=absolute_name(name, folder), parameters=parameters)


def _parameters(
    cls: type[Problem], given: Mapping[str, Any], folder: Path, errors: Errors
) -> dict[str, Any]:
    """All parameters of a problem: those given, and the defaults of the others."""
    if not is_dataclass(cls):
        for name in given:
            errors.add(
                f"problem.{name}", f"unknown key; {cls.__name__} takes no parameters (no dataclass)"
            )
        return {}
    found = convert_fields(given, cls, "problem", errors)
    parameters = {}
    for key in keys_of(cls):
        if key.name == "name":
            errors.add("problem.name", f"{cls.__name__} has a parameter 'name'; rename it")
        elif key.name in found:
            parameters[key.name] = _absolute(found[key.name], folder)
        elif not key.required:
            path = f"problem.{key.name} (the default)"
            value = convert(plain(key.default), key.hint, path, errors, key.default)
            parameters[key.name] = _absolute(value, folder)
    return parameters


def _absolute(value: Any, folder: Path) -> Any:
    """A value with all paths in it made absolute."""
    match value:
        case Path():
            return Path(os.path.abspath(folder / value))
        case tuple() | list():
            return type(value)(_absolute(entry, folder) for entry in value)
        case dict():
            return {key: _absolute(entry, folder) for key, entry in value.items()}
        case _ if is_dataclass(value) and not isinstance(value, type):
            changes = {
                k.name: _absolute(getattr(value, k.name), folder) for k in keys_of(type(value))
            }
            return replace(value, **changes)
    return value
