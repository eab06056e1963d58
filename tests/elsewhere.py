"""A second device for machines that have none, and what makes a program wait for a device.

Tensors on :data:`ELSEWHERE` are computed by the CPU's operators, but are kept apart from the CPU's
own, as those of a GPU are: an operator refuses to mix them, and every copy between the two, like
every value that is read, is one more :class:`Wait`. What runs here without a complaint needs no
more of a GPU than operators that PyTorch has there.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import kanpinn

aten = torch.ops.aten
NAME = "elsewhere"
PACKAGE = Path(kanpinn.__file__).parent
_setup_privateuseone_for_python_backend(NAME)
ELSEWHERE = torch.device(NAME, 0)

COPIES = (aten._to_copy.default, aten.copy_.default)
# Their results, or their shapes, are known to the host only once the device is done.
READS = (
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
    aten._local_scalar_dense.default,
    aten._linalg_check_errors.default,
    aten._unique2.default,
    aten.allclose.default,
    aten.bincount.default,
    aten.equal.default,
    aten.linalg_lstsq.default,
    aten.linalg_matrix_rank.default,
    aten.masked_scatter_backward.default,  # selects by the mask
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
)
# Made of other operators in a way that does not know of the tensors' shapes here.
FACTORIES = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "full", "linspace")

_LOGS: list[list[str]] = []  # of everyone who is listening


class Mixed(RuntimeError):
    """Tensors of two devices met in one operator."""


class _There(torch.Tensor):
    """A tensor elsewhere; ``here`` is the CPU's tensor that stands behind it."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        there: _There = torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=ELSEWHERE,
        )
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))

    # With these, modules swap their parameters as a whole where they change type or device.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["here"], None

    @staticmethod
    def __tensor_unflatten__(parts: Mapping[str, Tensor], *_: Any) -> _There:
        return _There(parts["here"])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"elsewhere: {self.here!r}"


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator, by the CPU's tensors behind its arguments."""
    tensors = list(_tensors((args, kwargs)))
    there = [t for t in tensors if isinstance(t, _There)]
    device = kwargs.get("device")
    if device is not None:
        device = torch.device(NAME, device) if isinstance(device, int) else torch.device(device)
        kwargs["device"] = torch.device("cpu")
    if func in COPIES:
        return _copy(func, args, kwargs, device)
    free = 0 if _takes_numbers(func) else -1  # dimensions of the CPU's tensors that may be there
    if there and any(t.dim() > free for t in tensors if not isinstance(t, _There)):
        raise Mixed(f"{func} was given tensors of two devices, {_place()}")
    if there and (func in READS or _reads(func, args, kwargs)):
        _tell(func)
    found = func(*_mapped(_here, args), **_mapped(_here, kwargs))
    if not there and (device is None or device.type == "cpu"):
        return found
    return return_and_correct_aliasing(func, args, kwargs, _mapped(_there, found))


def _copy(func: Any, args: Any, kwargs: dict[str, Any], device: torch.device | None) -> Tensor:
    """A copy within a device, or from one to the other, which the host waits for."""
    found: Tensor = func(*_mapped(_here, args), **kwargs)
    source = args[1] if func is aten.copy_.default else args[0]
    was_there = isinstance(source, _There)
    if func is aten.copy_.default:
        goes_there = isinstance(args[0], _There)
    else:
        goes_there = was_there if device is None else device.type == NAME
    if was_there != goes_there and not (goes_there and kwargs.get("non_blocking")):
        _tell(func)
    if func is aten.copy_.default:
        return args[0]
    return _There(found) if goes_there else found.clone()


def _takes_numbers(func: Any) -> bool:
    """Whether an operator takes the CPU's tensors without dimensions as it takes numbers."""
    return torch.Tag.pointwise in func.tags or func in (aten.where.self, aten.fill_.Tensor)


def _reads(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator reads something or copies it there, for some of its arguments."""
    if func in (
        aten.index.Tensor,
        aten.index_put.default,
        aten.index_put_.default,
    ):  # by a mask: as many as it has ones
        return any(index is not None and index.dtype is torch.bool for index in args[1])
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return func is aten.where.self and not all(isinstance(t, _There) for t in args)


def _here(tensor: Tensor) -> Tensor:
    return tensor.here if isinstance(tensor, _There) else tensor


def _there(tensor: Tensor) -> Tensor:
    return _There(tensor)


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nest of lists, tuples and dicts with every tensor mapped."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, part) for part in value])
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a nest, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _tell(func: Any) -> None:
    for log in _LOGS:
        log.append(f"{func}, {_place()}")


def _place() -> str:
    """The line of the package that asked."""
    for frame in reversed(traceback.extract_stack()):
        if PACKAGE in Path(frame.filename).parents:
            return f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.lineno}: {frame.line}"
    return "in a test"


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """What makes the host wait for a device in the meantime, and where: one text a time."""
    log: list[str] = []
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield log
            finally:
                torch.cuda.set_sync_debug_mode("default")
                log += [str(w.message) for w in caught if "synchroniz" in str(w.message)]
        return
    _LOGS.append(log)
    try:
        yield log
    finally:
        _LOGS.remove(log)


def _operator(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(aten, packet), overload or "default")

    def run(*args: Any, **kwargs: Any) -> Any:
        return _run(func, args, kwargs)

    return run


def _empty(size: Sequence[int], dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _There(torch.empty(size, dtype=dtype))


def _empty_strided(
    size: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return _There(torch.empty_strided(size, stride, dtype=dtype))


# What makes tensors from none has no argument that leads to `_There.__torch_dispatch__`.
_ANY = torch.library.Library("_", "IMPL")
_ANY.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
_ATEN = torch.library.Library("aten", "IMPL")
_ATEN.impl("empty.memory_format", _empty, "PrivateUse1")
_ATEN.impl("empty_strided", _empty_strided, "PrivateUse1")
for _name in ("_to_copy", *FACTORIES):
    _ATEN.impl(_name, _operator(_name), "PrivateUse1")


class Tape(TorchDispatchMode):
    """A recording as a GPU's graphs are: the operators alone, on the memory they first ran on.

    Nothing of the program between them is run again, and no operator that the host waits for is
    taken. It has the interface of :class:`kanpinn.training.replay.Recording`.
    """

    def __init__(self, function: Callable[[], Any], device: torch.device) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, dict[str, Any], Any]] = []
        function()  # whatever is made once is made here
        with waits(device) as found, self:
            self.result = function()
        if found:
            raise RuntimeError(f"operation not permitted when recording: {found[0]}")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.steps.append((func, args, dict(kwargs or {}), found))
        return found

    def replay(self) -> None:
        """Redo every operator."""
        with torch.no_grad():
            for func, args, kwargs, first in self.steps:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(first), _tensors(again), strict=True):
                    if old is not new and not func.is_view:
                        old.copy_(new)
