"""Work shared between threads, its results in a fixed order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def ordered_map(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """``function`` of every item, in order; at most ``workers`` calls at a time.

    PyTorch's operators release the interpreter, so that threads of it run side by side. They do so
    only while each operator has one thread: two kinds of sharing would fight for the cores.
    """
    if workers < 2 or torch.get_num_threads() > 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
