"""Execute a notebook and store the outputs in it, without times, messages and progress bars."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> None:
    """Execute a notebook in a temporary folder and write it with its new outputs.

    Raises ``CellExecutionError`` if a cell fails, and ``ValueError`` if an output names a folder of
    this machine.
    """
    os.environ["TQDM_DISABLE"] = "1"
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}}
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.output_type != "stream"]
    text = nbformat.writes(notebook) + "\n"
    for place in (folder, str(Path.home()), sys.prefix):
        if place in text:
            raise ValueError(f"{path}: an output has the path {place}; show less of it")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    execute(Path(sys.argv[1]))
