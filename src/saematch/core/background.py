"""Calls to servers in daemon threads, which do not delay the end of an interrupted process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import TypeVar

T = TypeVar("T")

ENDING_SECONDS = 10.0
"""Seconds that an interrupted run waits for running calls; schedulers kill it after about 30."""


def in_background(
    future: Future[T], call: Callable[[], T], slots: threading.Semaphore | None = None
) -> None:
    """Set ``future`` to the result of a call, which runs in its own thread once a slot is free.

    At exit Python waits for the threads of a ``ThreadPoolExecutor``, so for the server's reply. It
    does not wait for these threads.
    """

    def run() -> None:
        with slots or nullcontext():
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  (future.result raises it)
                    future.set_exception(error)

    threading.Thread(target=run, name="saematch", daemon=True).start()
