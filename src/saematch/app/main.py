"""The command line of saematch: choose the subcommand, and end it with a message and exit code."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from saematch.app.configuration import check_choices, without_config_dir
from saematch.app.launching import Begun, run_once
from saematch.app.messages import MISTAKES, one_line
from saematch.app.renaming import refuse_old_names
from saematch.app.secrets import refuse_secrets
from saematch.run.interruption import Interrupted, interruptible, record_killed

_HOME = re.compile(r"(?<=[=\[,])~(?=/)")
"""The ``~`` of a path inside an argument: shells keep it, and Hydra cannot parse it."""


def console() -> None:
    """Run the console script ``saematch``: ``main``, with the imports of ``python -m saematch``.

    Modules in the current folder can be imported, so that a preset's ``_target_`` may name them.
    Installed packages of the same name take precedence.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    main()


def main() -> None:
    """Run the command line.

    Bad input ends it with one line on stderr and exit code 1. A signal ends it with a line that
    shows how to continue, and with exit code 128 plus the signal's number.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() fails where there is none
    sys.argv[1:] = [_HOME.sub(lambda _: home, argument) for argument in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach this function instead of Hydra's printer
    Begun.config = None
    try:
        refuse_secrets(sys.argv[1:])
        refuse_old_names(sys.argv[1:])
        with interruptible():
            _command(sys.argv[1:])
    except Interrupted as cause:
        folder = Begun.folder()
        if folder is not None and Begun.is_multirun():
            with suppress(OSError, ValueError):
                record_killed(folder, cause)
        sys.stderr.write(f"saematch: {cause}; continue with: {_continuation(sys.argv[1:])}\n")
        sys.exit(cause.exit_code)
    except MISTAKES as error:
        if os.environ.get("SAEMATCH_TRACEBACK"):
            raise
        sys.exit(f"saematch: {one_line(error)}")


def _command(words: Sequence[str]) -> None:
    """Run the subcommand that the first word names; without a subcommand, do a run."""
    if words[:1] == ["reproduce"]:
        from saematch.app.reproduce import main as reproduce

        reproduce(words[1:])
    elif words[:1] == ["sweep"]:
        from saematch.app.sweep.command import main as sweep

        sweep(words[1:])
    elif words[:1] == ["spread"]:
        from saematch.app.spread import main as spread

        spread(words[1:])
    elif words[:1] == ["compare"]:
        from saematch.app.compare import main as compare

        compare(words[1:])
    elif words[:1] == ["saes"]:
        from saematch.app.saes import main as saes

        saes(words[1:])
    elif words[:1] == ["metrics"]:
        from saematch.app.metrics import main as metrics

        metrics(words[1:])
    elif words[:1] == ["show"]:
        from saematch.app.show import main as show

        show(words[1:])
    elif words[:1] == ["features"]:
        from saematch.app.features import main as features

        features(words[1:])
    elif words[:1] == ["export"]:
        from saematch.app.export import main as export

        export(words[1:])
    else:
        config_dir, words = without_config_dir(words)
        check_choices([word for word in words if "=" in word and not word.startswith("-")])
        if config_dir is not None:  # Hydra takes no option between settings
            sys.argv[1:] = ["--config-dir", str(config_dir), *words]
        run_once()


def _continuation(words: Sequence[str]) -> str:
    """Return the command line that continues an interrupted command."""
    missing = []
    if words[:1] == ["sweep"]:
        missing = ["--resume"]
    elif Begun.config is not None and not any(word.startswith("run_id=") for word in words):
        missing = [f"run_id={Begun.config.run_id}"]  # the default differs each time
    missing = [word for word in missing if word not in words]
    return shlex.join(["python", "-m", "saematch", *words, *missing])
