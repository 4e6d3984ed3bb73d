"""Frozen values with named fields: what `dataclasses.dataclass(frozen=True, slots=True)` makes, for less.

A run on a device defines two dozen of them and uses each a few times. dataclasses would load inspect, ast and
tokenize, and compile a text for every method of every class: a fifth of all that `rmagent sync` computes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeVar, dataclass_transform, overload

    T = TypeVar("T")

    @overload
    def field(*, repr: bool) -> Any: ...
    @overload
    def field(*, default: T, repr: bool) -> T: ...
    def field(*, default: Any = None, repr: bool) -> Any: ...
else:

    def dataclass_transform(**_named):
        return lambda decorator: decorator

    class field:
        """A field that is no part of the repr: secrets, and long bytes."""

        def __init__(self, *, repr, **named):
            self.shown = repr
            self.named = named


__all__ = ["field", "fields", "record", "replace"]


def fields(of: Any) -> tuple[str, ...]:
    """The names of the fields of a record or of its class, in their order."""
    names: tuple[str, ...] = of.__match_args__
    return names


def replace(value: T, **changes: Any) -> T:
    """The record with other values of some fields, checked as a new one is."""
    given = {name: getattr(value, name) for name in fields(value)}
    return type(value)(**{**given, **changes})


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """The class with one slot for each annotated name, a constructor by position or name, ==, hash and repr.

    `__post_init__`, where there is one, is called last, and sets fields by `object.__setattr__`. Records do not inherit.
    """
    names = tuple(cls.__annotations__)
    given = {name: vars(cls)[name] for name in names if name in vars(cls)}
    marks = {name: value for name, value in given.items() if isinstance(value, field)}  # type: ignore[arg-type]
    hidden = frozenset(name for name, mark in marks.items() if not mark.shown)
    plain = {name: value for name, value in given.items() if name not in marks}
    defaults = plain | {name: mark.named["default"] for name, mark in marks.items() if mark.named}
    dropped = {*names, "__dict__", "__weakref__"}
    body: dict[str, Any] = {name: value for name, value in vars(cls).items() if name not in dropped}
    body.update(
        __slots__=names,
        __match_args__=names,
        __qualname__=cls.__qualname__,
        __init__=_constructor(names, defaults, body.get("__post_init__")),
        __setattr__=_refuse,
        __delattr__=_refuse,
        __getstate__=_state,
        __setstate__=_restore,
        __repr__=_shown(tuple(name for name in names if name not in hidden)),
        __eq__=_equal,
        __hash__=_hash,
    )
    made: type[T] = type(cls.__name__, cls.__bases__, body)
    return made


def _constructor(names: tuple[str, ...], defaults: Mapping[str, Any], finish: Any) -> Any:
    put = object.__setattr__

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        for name, value in zip(names, args):  # noqa: B905 - their number is looked at last
            put(self, name, value)
        for name in names[len(args) :]:
            if name in named:
                put(self, name, named.pop(name))
            elif name in defaults:
                put(self, name, defaults[name])
            else:
                raise TypeError(f"{type(self).__name__}() is not given {name}")
        if named or len(args) > len(names):
            raise TypeError(f"{type(self).__name__}() is given too much: {', '.join(named) or len(args)}")
        if finish is not None:
            finish(self)

    return __init__


def _refuse(self: Any, name: str, *_value: Any) -> None:
    raise AttributeError(f"{name} of a {type(self).__name__} does not change")


def _state(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__match_args__])


def _restore(self: Any, state: tuple[Any, ...]) -> None:
    """For pickle and copy."""
    for name, value in zip(self.__match_args__, state, strict=True):
        object.__setattr__(self, name, value)


def _equal(self: Any, other: Any) -> Any:
    return _state(self) == _state(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_state(self))


def _shown(names: tuple[str, ...]) -> Any:
    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__
