"""``@spec``: frozen dataclasses of settings whose types and ranges are checked by name."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, partial
from types import UnionType
from typing import (
    Annotated,
    Any,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from saematch.core.errors import InputError

Item = TypeVar("Item", bound=Hashable)
Spec = TypeVar("Spec")


def _unique(items: Sequence[Item]) -> Sequence[Item]:
    twice = [item for n, item in enumerate(items) if item in items[:n]]
    if twice:
        raise PydanticCustomError("twice", f"Input names {twice[0]!r} twice: name it once")
    return items


Seed = Annotated[int, Field(ge=0, lt=2**63)]
AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Unique = Annotated[Sequence[Item], AfterValidator(_unique)]
"""A list without duplicates."""
Some = Annotated[Unique[Item], Field(min_length=1)]
"""A list without duplicates and with at least one item."""

LONGEST = 80
"""Largest number of characters of a refused value that a message shows."""

_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True)
def spec(setting: str) -> Callable[[type[Spec]], type[Spec]]:
    """Return a decorator that makes a class a frozen dataclass whose fields are checked.

    ``setting`` is the spec's name on the command line, such as ``judge.limits``; it is empty for
    settings of the top level. A field whose type differs from its annotation raises ``InputError``
    with the field's name, before the class's own ``__post_init__`` runs. Only paths are converted,
    to text. An integer is accepted as a float, but neither a boolean nor a float as an integer.
    Floats must be finite.
    """

    def decorate(cls: type[Spec]) -> type[Spec]:
        check_more = vars(cls).get("__post_init__")

        def __post_init__(self: Any) -> None:
            names = _adapters(cls)  # type: ignore[arg-type]  # classes are hashable
            for name in names:
                if isinstance(getattr(self, name), os.PathLike):
                    object.__setattr__(self, name, os.fspath(getattr(self, name)))
            check_fields(cls, {name: getattr(self, name) for name in names}, setting)
            if check_more is not None:
                check_more(self)

        cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
        frozen = dataclasses.dataclass(frozen=True)(cls)
        # Else jaxtyping, in tests, would check the fields before this decorator does
        frozen.__init__.__no_type_check__ = True  # type: ignore[attr-defined]
        return frozen

    return decorate


def brief(thing: object) -> str:
    """Return the class of a spec with the settings that differ from their defaults, as text."""
    name = type(thing).__name__
    if not dataclasses.is_dataclass(thing):
        return name
    changed = [
        (field.name, getattr(thing, field.name))
        for field in dataclasses.fields(thing)
        if field.repr and getattr(thing, field.name) != _default(field)
    ]
    settings = ", ".join(
        f"{setting}={brief(value) if dataclasses.is_dataclass(value) else repr(value)}"
        for setting, value in changed
    )
    return f"{name}({settings})" if settings else name


def _default(field: dataclasses.Field) -> object:
    """Return the default of a field; ``MISSING`` without one."""
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def check_fields(cls: type, values: Mapping[str, Any], setting: str = "") -> None:
    """Check values of some fields of a spec without creating it; raises the spec's errors."""
    adapters = _adapters(cls)
    for name, value in values.items():
        try:
            adapters[name].validate_python(value)
        except ValidationError as error:
            place = f"{setting}.{name}" if setting else name
            key = error.errors()[0]["loc"][:1]
            if isinstance(value, Mapping) and key and key[0] in value:
                place, value = f"{place}.{key[0]}", value[key[0]]
            raise InputError(f"{place}={_short(value)} {_reason(error)}") from None


@cache
def _adapters(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {
        field.name: TypeAdapter(_by_instance(hints[field.name]), config=_CONFIG)
        for field in dataclasses.fields(cls)
    }


def _by_instance(hint: Any) -> Any:
    """Return the annotation, changed so that our own classes are checked by ``isinstance``."""
    if isinstance(hint, type) and hint.__module__.partition(".")[0] not in ("builtins", "types"):
        return Annotated[Any, AfterValidator(partial(_instance, hint))]
    parts = get_args(hint)
    if hasattr(hint, "__metadata__"):
        return Annotated[(_by_instance(parts[0]), *hint.__metadata__)]
    changed = tuple(map(_by_instance, parts))
    if changed == parts:
        return hint
    if get_origin(hint) in (Union, UnionType):
        return Union[changed]  # noqa: UP007
    return get_origin(hint)[changed]


def _instance(cls: type, value: Any) -> Any:
    if isinstance(value, type):
        raise PydanticCustomError("type", f"Input should be an object: {value.__name__}(...)")
    if not isinstance(value, cls):
        if isinstance(value, str):
            raise PydanticCustomError(
                "text", "Input should be an object, not text: such as Parts() or TopK(k=3)"
            )
        declared = cls.__annotations__ if getattr(cls, "_is_protocol", False) else ()
        missing = [name for name in declared if not hasattr(value, name)]
        more = f", which has {', '.join(missing)}" if missing else ""
        raise PydanticCustomError("instance", f"Input should be of class {cls.__name__}{more}")
    return value


_PLAIN = (
    (r".* not allowed as a Sequence value", "must be a list"),
    (r"an instance of Sequence", "a list"),
    (r"^(Input|Value|String) should", "must"),
    (r"^Input ", ""),
    (r" after validation", ""),
)
"""Patterns in pydantic's messages and their replacements."""


def _reason(error: ValidationError) -> str:
    """Return the allowed values in a few words; a union has one error for each of its types."""
    reasons = []
    for detail in error.errors(include_url=False):
        sentence = detail["msg"]
        for pattern, plain in _PLAIN:
            sentence = re.sub(pattern, plain, sentence)
        item = next((n for n in detail["loc"] if isinstance(n, int)), None)
        reasons.append(sentence if item is None else f"item {item} {sentence}")
    first, *others = dict.fromkeys(reasons)
    return " or ".join([first, *(other.removeprefix("must be ") for other in others)])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
