"""Calls that wait for a server, in threads that do not keep an interrupted process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import TypeVar

T = TypeVar("T")

ENDING_SECONDS = 10.0
"""How long an interrupted run waits for calls in progress; schedulers kill it after about 30."""


def in_background(call: Callable[[], T], slots: threading.Semaphore | None = None) -> Future[T]:
    """Make a call in a thread of its own, as soon as one of the slots is free; return its future.

    Python waits at its end for the threads of a ``ThreadPoolExecutor``, which may take as long as
    a server does to answer. It does not wait for these.
    """
    future: Future[T] = Future()

    def run() -> None:
        with slots or nullcontext():
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  (future.result raises it)
                    future.set_exception(error)

    threading.Thread(target=run, name="saematch", daemon=True).start()
    return future
