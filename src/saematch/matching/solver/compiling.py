"""A notice when Numba compiles the solver, since the first match then takes longer."""

from __future__ import annotations

import logging

from numba.core.event import Event, Listener

log = logging.getLogger(__name__)


class CompileNotice(Listener):
    """Log once that code is being compiled; code in Numba's cache on disk is not compiled."""

    def __init__(self) -> None:
        self.given = False

    def on_start(self, event: Event) -> None:
        """Log the notice before the first function is compiled."""
        if not self.given:
            self.given = True
            log.info("compiling the solver for this processor: up to a minute, only once")

    def on_end(self, event: Event) -> None:
        """Do nothing after a function is compiled."""


NOTICE = CompileNotice()
"""The notice of this process."""
