"""Whether the fields of a dataclass hold what their annotations say, for those that were filled from a file."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isnan
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from sola_profile.source import InputShape, ModelSource

# what a module imports for its annotations alone
_NAMES: Mapping[str, Any] = {"InputShape": InputShape, "ModelSource": ModelSource}
_LONGEST = 40

Complaints = Iterable[str]
T = TypeVar("T")


def filled(kind: type[T], found: Mapping[str, Any]) -> T:
    """A dataclass of plain values, unchecked; fields that it doesn't know, such as derived ones, are passed over.

    Raises ``KeyError`` for one that is missing.
    """
    return kind(**{field.name: found[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def check_types(value: Any) -> None:
    """Raise ``ValueError`` that names the first field of a dataclass which holds something else than it may.

    Fields within fields are looked at too. ``float`` takes whole numbers, and infinity but never NaN; ``int`` takes no
    ``bool``.
    """
    for complaint in _fields(value, ""):
        raise ValueError(complaint)


def _fields(value: Any, path: str) -> Complaints:
    for name, kind in get_type_hints(type(value), localns=dict(_NAMES)).items():
        if name in type(value).__dataclass_fields__:
            yield from _complaints(getattr(value, name), kind, f"{path}.{name}" if path else name)


def _complaints(value: Any, kind: Any, path: str) -> Complaints:
    origin = get_origin(kind) or kind
    if kind is Any:
        return
    if origin in (Union, types.UnionType):
        yield from _union(value, get_args(kind), path)
    elif origin in _PLAIN:
        name, right = _PLAIN[origin]
        if not right(value):
            yield _expected(path, name, value)
    elif origin is tuple or origin is Sequence:
        yield from _sequence(value, get_args(kind), path)
    elif origin is Mapping:
        yield from _mapping(value, get_args(kind)[1], path)
    elif not isinstance(value, origin):
        yield _expected(path, origin.__name__, value)
    elif is_dataclass(origin):
        yield from _fields(value, path)


def _union(value: Any, kinds: Sequence[Any], path: str) -> Complaints:
    """Those of the kind that came nearest: the one whose complaint lies deepest."""
    found = [list(_complaints(value, kind, path)) for kind in kinds]
    if all(found):
        deeper = [complaints for complaints in found if not complaints[0].startswith(f"{path}: ")]
        names = " or ".join(complaints[0].split(": expected ")[1].split(", got ")[0] for complaints in found)
        yield from deeper[0] if deeper else [_expected(path, names, value)]


def _sequence(value: Any, kinds: Sequence[Any], path: str) -> Complaints:
    if not isinstance(value, (tuple, list)):
        yield _expected(path, "a list", value)
        return
    endless = len(kinds) == 1 or kinds[-1] is Ellipsis
    if not endless and len(value) != len(kinds):
        yield _expected(path, f"{len(kinds)} entries", value)
        return
    for number, entry in enumerate(value):
        yield from _complaints(entry, kinds[0] if endless else kinds[number], f"{path}[{number}]")


def _mapping(value: Any, kind: Any, path: str) -> Complaints:
    if not isinstance(value, Mapping):
        yield _expected(path, "an object", value)
        return
    for name, entry in value.items():
        yield from _complaints(entry, kind, f"{path}[{name!r}]")


def _expected(path: str, what: str, value: Any) -> str:
    shown = repr(value)
    return f"{path}: expected {what}, got {shown if len(shown) <= _LONGEST else f'{shown[:_LONGEST]}…'}"


def _is_float(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not isnan(value)
    except OverflowError:
        # a whole number of more than 308 digits, with which nothing can be divided
        return False


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and _is_float(value)


_PLAIN: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", _is_int),
    float: ("a number", _is_float),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    types.NoneType: ("null", lambda value: value is None),
}
