"""Pages from the templates in ``templates/``; HTML pages are single files with their style."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saematch.core.files import replacing
from saematch.core.safe_text import in_markdown

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_CODE = re.compile(r"(`+)([^`]+)\1")


def write_template(path: Path, template: str, **values: Any) -> None:
    """Write the page that a template makes of the values; in ``.html``, values are escaped."""
    text = _environment().get_template(template).render(**values)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"in_markdown": in_markdown, "with_code": _with_code}
    return environment


def _with_code(text: str) -> Markup:
    """Return text as HTML, with words in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\2</code>", str(escape(text))))
