"""Work shared between threads, its results in a fixed order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from functools import lru_cache
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")

_THREAD = threading.local()


def ordered_map(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """``function`` of every item, in order; at most ``workers`` calls at a time.

    PyTorch's operators release the interpreter, so that threads of it run side by side. Meanwhile
    an operator has one thread: two kinds of sharing would fight for the cores. Where there is
    nothing to share (a single item, a call from a thread that is itself one of several), operators
    keep their threads. Of PyTorch's modes, which are a thread's own, ``inference_mode`` is carried
    over; ``function`` sets others (``no_grad``).
    """
    items = list(items)
    if min(workers, len(items)) < 2 or getattr(_THREAD, "shares", False):
        yield from map(function, items)
        return
    if torch.is_inference_mode_enabled():
        function = torch.inference_mode()(function)
    with _operators_in_one_thread():
        pool, waiting = _threads(workers, os.getpid()), deque[Future[T]]()
        try:
            for item in items:
                waiting.append(pool.submit(copy_context().run, function, item))
                if len(waiting) == workers:
                    yield waiting.popleft().result()
            while len(waiting) > 1:
                yield waiting.popleft().result()
            last = waiting.popleft().result()
        finally:  # nothing goes on behind an error, or a reader that has enough
            for future in waiting:
                future.cancel()
            wait(waiting)
    yield last  # no thread is at work any more: what is made of it has all of them


@lru_cache
def _threads(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads that are kept from one map to the next; none of them survives a fork."""

    def mark() -> None:
        _THREAD.shares = True

    return ThreadPoolExecutor(workers, initializer=mark)


@contextmanager
def _operators_in_one_thread() -> Iterator[None]:
    """PyTorch's operators in one thread; both changes take a microsecond.

    What has been set in the meantime is left alone: a map that is given up ends late.
    """
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1 and torch.get_num_threads() == 1:
            torch.set_num_threads(before)
