"""The command ``saematch experiments``: the experiments that ``+experiment=NAME`` chooses."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from saematch.app.configuration import add_config_dir, config_dir_of
from saematch.app.text import two_columns
from saematch.core.files import PRESETS


def main(words: Sequence[str]) -> None:
    """Print each experiment with what it shows."""
    parser = argparse.ArgumentParser(
        prog="saematch experiments",
        description="List the experiments. Run one with: saematch +experiment=NAME",
    )
    add_config_dir(parser)
    folder = config_dir_of(parser.parse_args(words).config_dir)
    for presets in filter(None, (PRESETS, folder)):
        rows = [(path.stem, purpose(path)) for path in sorted(presets.glob("experiment/*.yaml"))]
        sys.stdout.write(two_columns(rows))


def purpose(path: Path) -> str:
    """Return the first sentence of a preset's comment, such as ``figure 3: squared error``."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    sentence = re.split(r"(?<=[.?])\s", " ".join(comment), maxsplit=1)[0].rstrip(".")
    return re.sub(r"^(The paper's|Not in the paper:) ", "", sentence)
