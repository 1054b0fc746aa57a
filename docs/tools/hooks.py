"""Hook of MkDocs: the notebook as a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOK = "notebook.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``notebook.md``, made from the notebook's cells and their stored outputs."""
    notebook = json.loads(Path(config.docs_dir, NOTEBOOK).read_text(encoding="utf-8"))
    page = "\n\n".join(_cell(cell) for cell in notebook["cells"])
    files.append(File.generated(config, "notebook.md", content=page))
    return files


def _cell(cell: dict[str, Any]) -> str:
    """Return a cell as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    outputs = [_output(output) for output in cell["outputs"]]
    return "\n\n".join([f"```python\n{source}\n```", *outputs])


def _output(output: dict[str, Any]) -> str:
    """Return an output in its richest form: image, HTML or text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        image = "".join(data["image/png"]).strip()
        return f'<img alt="figure" src="data:image/png;base64,{image}">'
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        html = html.replace('<table border="1" class="dataframe">', "<table>")
        return f"<div>{' '.join(line.strip() for line in html.splitlines())}</div>"
    return f"```text\n{''.join(data['text/plain'])}\n```"
