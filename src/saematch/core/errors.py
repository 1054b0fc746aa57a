"""Errors of the caller, shown in one line. All other errors show a traceback."""

from __future__ import annotations

from contextlib import ContextDecorator
from types import TracebackType


class InputError(ValueError):
    """A mistake of the caller; the message has the value, what is allowed, and what to do."""


class FileError(InputError, OSError):
    """A file or folder that cannot be read or written."""


class stage(ContextDecorator):
    """Add the stage of a run to an error in the block or decorated function.

    The message of an ``InputError`` gets the arm, pair and evaluation as a prefix, except for
    ``FileError``.
    Any other error gets a note, which its traceback shows. No error is caught.
    """

    def __init__(
        self,
        name: str,
        arm: str | None = None,
        pair: str | None = None,
        evaluation: str | None = None,
    ) -> None:
        self.name = name
        named = {"arm": arm, "pair": pair, "evaluation": evaluation}
        self.place = ", ".join(f"{kind} {value}" for kind, value in named.items() if value)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if isinstance(error, InputError):
            if self.place and not isinstance(error, FileError):
                error.args = (f"{self.place}: {error}",)
        elif isinstance(error, Exception):
            note = f"in stage {self.name}"
            if not any(n.startswith(note) for n in getattr(error, "__notes__", ())):
                error.add_note(note + (self.place and f", {self.place}"))


def described(error: BaseException) -> str:
    """Return an error's class, message and notes, for ``results.json``."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error}{notes}"
