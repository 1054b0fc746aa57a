"""The words of a run's command line: options, and settings as KEY=VALUE. Others are refused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from saematch.app.commands import COMMANDS
from saematch.app.configuration import known_keys
from saematch.app.text import HELP, suggested
from saematch.core.errors import InputError
from saematch.core.files import PRESETS

OPTIONS = ("--help", "--version", "--cfg", "--resolve", "--multirun", "--config-dir")
"""Options that a message suggests; Hydra has more."""


def options_first(words: Sequence[str]) -> list[str]:
    """Return the words with the options before the settings, since Hydra takes none in between.

    Raises ``InputError`` for an unknown option, an abbreviated one, and a word that is neither an
    option nor a setting.
    """
    parser = get_args_parser()
    parser.allow_abbrev = parser.exit_on_error = False
    try:
        parsed, unknown = parser.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; {HELP}") from error
    if unknown:
        raise InputError(_unknown_option(unknown[0]))
    settings = list(parsed.overrides)
    for word in settings:
        if "=" not in word and not word.startswith("~"):
            raise InputError(_no_setting(word, words))
    return [*(word for word in words if word not in settings), *settings]


def _unknown_option(option: str) -> str:
    name, equals, value = option.lstrip("-").partition("=")
    keys = known_keys()
    if name == "experiment":
        hint = f"write +experiment={value or 'NAME'}"
    elif name in keys or equals:
        hint = f"a setting has no hyphens: write {name}={value or 'VALUE'}"
    else:
        close = suggested(option, OPTIONS)
        hint = f"did you mean {close}?" if close else HELP
    return f"there is no option {option}; {hint}"


def _no_setting(word: str, words: Sequence[str]) -> str:
    """Return a sentence on a word that has no ``=``."""
    key = word.lstrip("+")
    commands = ", ".join(COMMANDS)
    experiments = sorted(path.stem for path in (PRESETS / "experiment").glob("*.yaml"))
    if key == "experiment" or key in known_keys():
        written = "+experiment=NAME" if key == "experiment" else f"{key}=VALUE"
        return f"{word} has no value: write {written}, without blanks"
    if word != words[0]:
        if word in COMMANDS:
            return f"the command comes first: saematch {word} ..."
        return f"{word} is not a setting: write KEY=VALUE, without blanks around '='"
    if word == "run":
        return "a run has no command: write its settings alone, as in saematch layers=[2,3,4]"
    if key.replace("-", "_") in experiments:
        return f"{word} is an experiment: write +experiment={key.replace('-', '_')}"
    close = suggested(word, [*COMMANDS, "help", "version", *experiments])
    close = f"--{close}" if close in ("help", "version") else close
    close = f"+experiment={close}" if close in experiments else close
    hint = f"; did you mean {close}?" if close else "."
    return f"there is no command {word}{hint} The commands are {commands}; {HELP}"
