"""Work shared between threads, its results in a fixed order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def ordered_map(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """``function`` of every item, in order; at most ``workers`` calls at a time.

    PyTorch's operators release the interpreter, so that threads of it run side by side. They do so
    only while each operator has one thread: two kinds of sharing would fight for the cores.
    ``function`` must not share work itself: it would wait for the thread it runs in.
    """
    if workers < 2 or torch.get_num_threads() > 1:
        yield from map(function, items)
        return
    pool, waiting = _threads(workers, os.getpid()), deque[Future[T]]()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # nothing goes on behind an error, or a reader that has enough
        for future in waiting:
            future.cancel()
        wait(waiting)


@lru_cache
def _threads(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads that are kept from one map to the next; none of them survives a fork."""
    return ThreadPoolExecutor(workers)
