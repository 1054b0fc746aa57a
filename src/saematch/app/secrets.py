"""Refusal of keys and passwords among settings, because settings are written to files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from saematch.core.errors import InputError

_VARIABLES = r"['\"]?(null|(?-i:[A-Z][A-Z0-9_]*(,[A-Z][A-Z0-9_]*)*))?['\"]?$"
_WORDS = r"(\b|_)(api_?key|key|secret|password|token)[=:]"
_KEY = re.compile(
    rf"(?<!/){_WORDS}|://.*{_WORDS}|\bsk-[\w-]{{16}}"
    rf"|://[^'\"\s]*@|base_url=.*[@?#]|key_variable=(?!{_VARIABLES})",
    re.IGNORECASE,
)
"""An argument that seems to hold a key. A folder named ``token=8`` in a path does not match."""

_ENVIRONMENT = re.compile(r"[+~]*hydra\b.*\b(env_set|env_vars)\b", re.DOTALL)
"""Settings of Hydra and its launchers that hold values of environment variables."""


def refuse_secrets(settings: Sequence[str]) -> None:
    """Refuse settings that may hold a key."""
    if any(_KEY.search(setting) for setting in settings):
        raise InputError(
            "the command line accepts no key or password: put it into an environment variable, and "
            "the variable's name into judge.key_variable"
        )
    environment = [match for match in map(_ENVIRONMENT.match, settings) if match]
    if environment:
        raise InputError(
            f"{environment[0][1]} is not allowed, because Hydra writes its values to files: set "
            "environment variables in the shell that starts the command"
        )
