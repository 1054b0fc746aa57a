"""The caller's mistakes, which end in one line; every other error shows its traceback."""

from __future__ import annotations

from contextlib import ContextDecorator
from types import TracebackType


class InputError(ValueError):
    """What was asked for cannot be done; the message says what was given and what is legal."""


class FileError(InputError, OSError):
    """A file or folder cannot be read or written."""


class stage(ContextDecorator):
    """Say of an error in the block, or in the decorated function, where in a run it happened.

    An ``InputError`` of an arm or a pair gets both in front of its sentence, unless it is about a
    file. Any other error gets a note, which its traceback shows. Nothing is caught.
    """

    def __init__(self, name: str, arm: str | None = None, pair: str | None = None) -> None:
        self.name = name
        named = {"arm": arm, "pair": pair}
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
