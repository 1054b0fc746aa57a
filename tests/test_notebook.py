"""The notebook of the documentation: its stored outputs, and its code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/notebook.ipynb"
CELLS = [
    cell
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]


def test_the_stored_outputs_are_small_and_without_errors_and_messages():
    assert NOTEBOOK.stat().st_size < 200_000
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    kinds = {output["output_type"] for cell in CELLS for output in cell["outputs"]}
    assert kinds == {"display_data", "execute_result"}
    assert all(cell["outputs"] for cell in CELLS)
    assert "/home/" not in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_runs(tmp_path):
    code = "\n".join("".join(cell["source"]) for cell in CELLS)
    subprocess.run(
        [sys.executable, "-c", f"import matplotlib; matplotlib.use('Agg')\n{code}"],
        cwd=tmp_path, check=True, timeout=600,
    )  # fmt: skip
    assert (tmp_path / "outputs/match/notebook/results.json").exists()
