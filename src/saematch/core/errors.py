"""The caller's mistakes, which end in one line; every other error shows its traceback."""

from __future__ import annotations


class InputError(ValueError):
    """What was asked for cannot be done; the message says what was given and what is legal."""


class FileError(InputError, OSError):
    """A file or folder cannot be read or written."""
