"""A saga's context: the user's class on one side, JSON with snake_case keys on the other."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Generic, Self, TypeVar, get_args, get_type_hints
from uuid import UUID

import pydantic
from pydantic_core import PydanticSerializationError

from watership import codec
from watership.errors import DefinitionError, InvalidPayload


@dataclasses.dataclass
class SagaContext:
    """A saga's data. Subclass it with ``@dataclasses.dataclass``; a pydantic model serves as well."""

    def to_dict(self) -> dict[str, Any]:
        """JSON data, snake_case keys."""
        return shape_of(type(self)).dump(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote. Raises `InvalidPayload` that names the field."""
        return shape_of(cls).load(data)

    def model_dump(self) -> dict[str, Any]:
        """The same as `to_dict`, under the name that pydantic's users expect."""
        return self.to_dict()


ContextT = TypeVar("ContextT")
_T = TypeVar("_T")


class Shape(Generic[_T]):
    """How one context class maps to JSON. Fields that the class does not name pass through untouched elsewhere."""

    __slots__ = ("_adapter", "_fields", "_in_dict", "_last", "_may_copy", "cls", "fields")

    def __init__(self, cls: type[_T]) -> None:
        self.cls = cls
        self._fields: dict[str, pydantic.TypeAdapter[Any]] = {}
        self._in_dict = True  # its attributes are all that it has
        self._last: tuple[Mapping[str, Any], dict[str, Any]] | None = None  # data that was loaded, and what that gave
        # Whether a copy of its attributes is all that loading it again would give.
        self._may_copy = not hasattr(cls, "__post_init__") and not hasattr(cls, "__pydantic_validator__")
        if isinstance(cls, type) and issubclass(cls, pydantic.BaseModel):
            self.fields = frozenset(cls.model_fields)
            self._in_dict = cls.model_config.get("extra") != "allow" and not cls.__private_attributes__
        elif dataclasses.is_dataclass(cls):
            self.fields = frozenset(field.name for field in dataclasses.fields(cls))
            _check_is_decorated(cls)
        else:
            raise DefinitionError(f"{cls!r} cannot be a context: make it a dataclass (SagaContext) or a pydantic model")
        try:
            self._adapter: pydantic.TypeAdapter[_T] = pydantic.TypeAdapter(cls)
        except pydantic.errors.PydanticUserError as error:
            raise DefinitionError(f"the context {cls.__name__} has a field that JSON cannot carry: {error}") from error

    def dump(self, context: _T) -> dict[str, Any]:
        """The context as JSON data. Raises `InvalidPayload` if a field holds what its type does not allow."""
        try:
            data: dict[str, Any] = self._adapter.serializer.to_python(
                context, mode="json", by_alias=False, warnings="error"
            )
        except (pydantic.ValidationError, PydanticSerializationError, ValueError) as error:
            raise InvalidPayload(f"the context {self.cls.__name__} cannot be written as JSON: {error}") from error
        return data

    def load(self, data: Mapping[str, Any]) -> _T:
        """The context from JSON data; fields that the class does not have are left out."""
        fields = self.fields
        known = data if fields.issuperset(data) else {name: data[name] for name in data if name in fields}
        known = codec.copied(
            known if type(known) is dict else dict(known)
        )  # a handler may change in place what it is given
        try:
            loaded: _T = self._adapter.validator.validate_python(known, by_alias=False, by_name=True)
        except pydantic.ValidationError as error:
            raise InvalidPayload(f"not a {self.cls.__name__}: {_sentence(error)}") from error
        return loaded

    def schema(self) -> dict[str, Any]:
        """The JSON Schema that a start's context must satisfy."""
        try:
            return self._adapter.json_schema(by_alias=False, mode="validation")
        except pydantic.errors.PydanticInvalidForJsonSchema as error:
            raise DefinitionError(
                f"the context {self.cls.__name__} has a field without JSON Schema: {error}"
            ) from error

    def trouble_with(self, field: str, data: Any) -> str | None:
        """Why ``data``, JSON data, is no value of this field, in words; None: it is one."""
        try:
            self._field(field).validate_python(data)
        except pydantic.ValidationError as error:
            return f"{field}: {_sentence(error)}"
        return None

    def fields_of(self, field: str) -> frozenset[str]:
        """The fields of the dataclass or model that this field holds; none if it may hold something else."""
        annotation = get_type_hints(self.cls)[field]
        parts = [part for part in (get_args(annotation) or (annotation,)) if part is not type(None)]
        if all(isinstance(part, type) and issubclass(part, pydantic.BaseModel) for part in parts):
            return frozenset(name for part in parts for name in part.model_fields)
        if all(isinstance(part, type) and dataclasses.is_dataclass(part) for part in parts):
            return frozenset(each.name for part in parts for each in dataclasses.fields(part))
        return frozenset()

    def strays(self, context: _T) -> frozenset[str]:
        """Attributes of a context that are no fields of it: they are not kept with the saga."""
        found: dict[str, Any] = getattr(context, "__dict__", {})
        if self.fields.issuperset(found):
            return _NONE
        return frozenset(
            name for name in found.keys() - self.fields if not name.startswith("_") and not hasattr(self.cls, name)
        )

    def load_still(self, data: Mapping[str, Any]) -> tuple[_T, dict[str, Any] | None]:
        """The same as `load`, with what `still` gives of it.

        Most steps change nothing, so that the next one loads the very same data: it gets a copy of what that gave. So
        ``data`` must be what nobody changes in place, as the context in a saga's state.
        """
        last = self._last
        if last is not None and last[0] is data:
            copied = self.cls.__new__(self.cls)
            copied.__dict__.update(last[1])
            return copied, last[1]
        loaded = self.load(data)
        still = self.still(loaded)
        self._last = (data, still) if still is not None and self._may_copy else None
        return loaded, still

    def still(self, context: _T) -> dict[str, Any] | None:
        """What the context holds, if that can only be changed by setting an attribute of it, and each one is a field."""
        held: dict[str, Any] | None = getattr(context, "__dict__", None) if self._in_dict else None
        if held is None or len(held) != len(self.fields) or not self.fields.issuperset(held):
            return None
        return held.copy() if _STILL.issuperset(map(type, held.values())) else None

    def is_as_it_was(self, context: _T, still: Mapping[str, Any]) -> bool:
        """Whether it holds the very same values. What is equal may be written otherwise: 1 and True, 10 and 10.00."""
        held = context.__dict__
        return held.keys() == still.keys() and all(map(operator.is_, held.values(), still.values()))

    def as_it_was(self, context: _T, still: Mapping[str, Any]) -> _T:
        """A context that holds what `still` gave of this one."""
        was = copy.copy(context) if isinstance(context, pydantic.BaseModel) else object.__new__(type(context))
        was.__dict__.clear()
        was.__dict__.update(still)
        return was

    def _field(self, name: str) -> pydantic.TypeAdapter[Any]:
        adapter = self._fields.get(name)
        if adapter is None:
            annotation = get_type_hints(self.cls, include_extras=True)[name]
            adapter = self._fields[name] = pydantic.TypeAdapter(annotation)
        return adapter

    def assign(self, target: _T, data: Mapping[str, Any], patch: Mapping[str, Any]) -> None:
        """Sets the patched fields of ``target`` to what ``data``, the whole context, holds for them now."""
        changed = [name for name in patch if name in self.fields]
        if not changed:
            return
        source = self.load(data)
        for name in changed:
            object.__setattr__(target, name, getattr(source, name))


def _check_is_decorated(cls: type[Any]) -> None:
    names = inspect.get_annotations(cls)
    if names and "__dataclass_fields__" not in vars(cls):
        raise DefinitionError(
            f"the context {cls.__name__} is no dataclass of its own, so {', '.join(names)} would not be kept: decorate it "
            f"with @dataclasses.dataclass"
        )


def _sentence(error: pydantic.ValidationError) -> str:
    problems = [f"{'.'.join(str(part) for part in item['loc']) or 'it'}: {item['msg']}" for item in error.errors()]
    return "; ".join(problems[:5])


_NONE: frozenset[str] = frozenset()
# What nobody can change once it is made; of these very types, since a subclass may have more to it.
_STILL: frozenset[type] = frozenset(
    {type(None), bool, int, float, str, bytes, Decimal, UUID, datetime, date, time, timedelta}
)
_shapes: dict[Any, Shape[Any]] = {}


def shape_of(cls: type[_T]) -> Shape[_T]:
    """The one `Shape` of a context class."""
    shape: Shape[_T] | None = _shapes.get(cls)
    if shape is None:
        shape = _shapes[cls] = Shape(cls)
    return shape


def patch_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The top-level fields whose value differs, whole; null is a value; nothing is ever deleted."""
    if before == after:
        return {}
    return {name: value for name, value in after.items() if name not in before or before[name] != value}
