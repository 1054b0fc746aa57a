"""The command ``saematch show``: write the page of a run."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from saematch.core.files import check_path


def main(words: Sequence[str]) -> None:
    """Write the page and print its address; ``InputError`` for a run that has no page."""
    parser = argparse.ArgumentParser(
        prog="saematch show",
        description="Write the page of a run, on which you follow its features through the "
        "layers: a folder that a browser opens from disk, without a server or a network.",
        epilog="Example: saematch show outputs/match/a --open",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that matched SAEs")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER",
        help="folder of the page: new, empty or an earlier page, which is replaced (default: "
        "RUN/explorer)",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open the page in the default browser")
    options = parser.parse_args(words)
    if options.to is not None:
        check_path("--to", options.to)
    from saematch.explorer.page import write_page

    address = write_page(options.run, options.to).absolute().as_uri()
    sys.stdout.write(f"open in a browser: {address}\n")
    if options.open and not webbrowser.open(address):
        sys.stderr.write("no browser could be opened\n")
