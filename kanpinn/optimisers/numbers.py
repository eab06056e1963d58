"""Numbers that the host decides by: read from the device together, since it waits each time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reads_freely(tensor: Tensor) -> bool:
    """Whether a number is read without waiting: then it pays to look before going on."""
    return tensor.device.type == "cpu"


def read(values: Sequence[Tensor]) -> list[float]:
    """The values of 0-d tensors of any types, exact in float64, in one wait for their device."""
    found: list[float] = torch.stack([value.to(torch.float64) for value in values]).cpu().tolist()
    return found


class Numbers:
    """Numbers that are read once the first of them is asked for, all that are known of by then."""

    def __init__(self) -> None:
        self._waiting: list[Number] = []

    def later(self, value: Tensor) -> Number:
        """The number behind a 0-d tensor."""
        number = Number(value, self)
        self._waiting.append(number)
        return number

    def read(self) -> None:
        """Read what is waiting."""
        waiting, self._waiting = self._waiting, []
        values = read([number.tensor for number in waiting])
        for number, value in zip(waiting, values, strict=True):
            number.value = value


class Number:
    """A 0-d tensor, and its value once that has been read.

    Attributes:
        tensor: on its device.
        value: ``None`` before.
    """

    def __init__(self, tensor: Tensor, numbers: Numbers) -> None:
        self.tensor, self._numbers = tensor, numbers
        self.value: float | None = None

    def __float__(self) -> float:
        if self.value is None:
            self._numbers.read()
        assert self.value is not None
        return self.value
