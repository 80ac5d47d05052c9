"""Whether contexts that satisfied one JSON Schema can still be read by a class: by their fields, as far as schemas tell.

It must never know a plan or a saga. What a schema cannot tell (a pattern, a validator) only a real context shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def newly_required(before: Schema, now: Schema) -> list[str]:
    """Fields without which the class takes no context, and which contexts need not have had."""
    return [name for name in now.get("required", ()) if name not in before.get("required", ())]


def narrowed(before: Schema, now: Schema) -> Iterator[tuple[str, str]]:
    """Fields that took a kind of JSON value that the class does not take any more, and which kinds those are."""
    properties = now.get("properties", {})
    for name, schema in before.get("properties", {}).items():
        if name not in properties:
            continue
        took, takes = _kinds(schema, before), _kinds(properties[name], now)
        if took is None or takes is None:
            continue
        lost = sorted(kind for kind in took if not _is_taken(kind, takes))
        if lost:
            yield name, ", ".join(lost)


def dropped(before: Schema, now: Schema) -> list[str]:
    """Fields that the class does not have any more: their values are carried along untouched."""
    return [name for name in before.get("properties", {}) if name not in now.get("properties", {})]


def _is_taken(kind: str, takes: frozenset[str]) -> bool:
    if kind in takes or (kind == "integer" and "number" in takes):
        return True
    return kind.startswith("string ") and "string" in takes


def _kinds(schema: Any, root: Schema) -> frozenset[str] | None:
    """The kinds of JSON value that a schema takes, a string's format with it; None: any, or it does not say."""
    if not isinstance(schema, Mapping):
        return None
    if "$ref" in schema:
        return _kinds(root.get("$defs", {}).get(str(schema["$ref"]).removeprefix("#/$defs/")), root)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            found = [_kinds(one, root) for one in schema[several]]
            return None if None in found else frozenset().union(*(one for one in found if one is not None))
    if "enum" in schema or "const" in schema:
        return frozenset(_kind_of(value) for value in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type")
    if kinds is None:
        return None
    named = [kinds] if isinstance(kinds, str) else list(kinds)
    form = f" ({schema['format']})" if "format" in schema else ""
    return frozenset(f"string{form}" if kind == "string" else str(kind) for kind in named)


def _kind_of(value: Any) -> str:
    return "null" if value is None else _TYPES.get(type(value), "string")
