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


def in_background(
    future: Future[T], call: Callable[[], T], slots: threading.Semaphore | None = None
) -> None:
    """Fill ``future`` with the result of a call, in a thread of its own and when a slot is free.

    Python waits at its end for the threads of a ``ThreadPoolExecutor``, which may take as long as
    a server does to answer. It does not wait for these.
    """

    def run() -> None:
        with slots or nullcontext():
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  (future.result raises it)
                    future.set_exception(error)

    threading.Thread(target=run, name="saematch", daemon=True).start()
