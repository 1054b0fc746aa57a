"""Extension of Griffe: defaults of dataclass fields as a reader would write them."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Extension

PART = re.compile(r"field\(default_factory=partial\(_part, '[\w.]+', '(\w+)'\)\)")
"""A default that is an object of a class in another module."""
FACTORY = re.compile(r"field\(default_factory=(?:lambda: )?(.+)\)", re.DOTALL)
EMPTY = {"dict": "{}", "list": "[]", "tuple": "()"}


class ReadableDefaults(Extension):
    """Show ``field(default_factory=...)`` as the default value."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Replace the default of a field."""
        value = str(attr.value)
        if part := PART.fullmatch(value.replace('"', "'")):
            attr.value = f"{part[1]}()"
        elif factory := FACTORY.fullmatch(value):
            name = factory[1]
            attr.value = EMPTY.get(name, f"{name}()" if re.fullmatch(r"[\w.]+", name) else name)
