"""A config described key by key: its value, its default, what it takes and what it is for.

keys_of(Config)
-> [Key("samples", value=1, default=1, kind="whole number, 1 to 100", about="draws for each question"), ...]
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_COMMENT_AT = 36  # the column where comments begin, unless a value is longer
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}


GROUP = "group"


class _Required:
    """Stands where a key has no default."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a config, dotted; of a group the line that opens it.

    `inside_null` where the group that holds it is switched off.
    """

    name: str
    value: Any
    default: Any
    kind: str
    about: str
    inside_null: bool = False

    @property
    def opens(self) -> bool:
        """Whether it is a group whose keys follow."""
        return isinstance(self.value, Mapping) and self.kind.startswith(GROUP)


def keys_of(model: type[BaseModel], values: Mapping[str, Any] | None = None) -> list[Key]:
    """Every key of a config model, groups opened; `values` are its plain values where they are known."""
    return list(_keys(model, values or {}, {}, ""))


def _keys(
    model: type[BaseModel], values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str
) -> Iterator[Key]:
    """`defaults` are those that the group as a whole has, where they are not its members' own."""
    for name, field in model.model_fields.items():
        own = REQUIRED if field.is_required() else _plain(field.get_default(call_default_factory=True))
        default = defaults.get(name, own)
        value = values.get(name, default)
        group = _group(field.annotation)
        about = field.description or _first_sentence(group)
        yield Key(f"{prefix}{name}", value, default, _kind(field), about)
        if group is None:
            continue
        known, usual = _as_mapping(value), _as_mapping(default)
        for inner in _keys(group, known or {}, usual or {}, f"{prefix}{name}."):
            yield inner if known is not None else replace(inner, inside_null=value is None)


def _first_sentence(group: type[BaseModel] | None) -> str:
    return (getattr(group, "__doc__", None) or "").strip().partition("\n")[0].rstrip(".")


def _as_mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _group(annotation: Any) -> type[BaseModel] | None:
    """The nested config that an annotation stands for, also where it may be null."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _kind(field: FieldInfo) -> str:
    kinds = _kinds(field.annotation)
    said = " or ".join(_words(kind) for kind in kinds if kind is not NoneType)
    if bounds := _bounds(field.metadata):
        said += f", {bounds}"
    return f"{said}{',' if bounds else ''} or null" if NoneType in kinds else said


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (tuple, list):
        several = sorted({_words(one) for one in inner if one is not Ellipsis})
        count = "" if origin is list or Ellipsis in inner else f"{len(inner)}: "
        return f"list of {count}{' or '.join(several)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return GROUP
    return _WORDS.get(annotation, "mapping" if origin is dict or annotation is dict else "")


def _bounds(metadata: list[Any]) -> str:
    found = {
        name: getattr(m, name) for m in metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)
    }
    if "ge" in found and "le" in found:
        return f"{found['ge']} to {found['le']}"
    words = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    return ", ".join(text.format(found[name]) for name, text in words.items() if name in found)


def shown(value: Any) -> str:
    """A plain value as one line of YAML; nothing for a group that is opened and for what must be given."""
    if value is REQUIRED:
        return ""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def commented_yaml(keys: list[Key], width: int) -> str:
    """The config as YAML that reads back, each key with a comment at its side."""
    lines: list[str] = []
    for key in keys:
        *groups, last = key.name.split(".")
        name = f"# {key.name}" if key.inside_null else f"{'  ' * len(groups)}{last}"
        value = "" if key.opens else shown(key.value)
        lines += _with_comment(f"{name}: {value}".rstrip(), _comment(key), width)
    return "\n".join(lines)


def _comment(key: Key) -> str:
    about = key.about
    if key.opens:
        return about
    if key.value is REQUIRED:
        about = f"REQUIRED. {about}".strip()
    elif key.value != key.default and key.default is not REQUIRED:
        about = f"{about} [default: {shown(key.default)}]".strip()
    return f"{about} ({key.kind})".strip() if key.kind else about


def _with_comment(line: str, comment: str, width: int) -> Iterator[str]:
    at = max(_COMMENT_AT, len(line) + 2)
    parts = textwrap.wrap(comment, max(width - at - 2, 24)) or [""]
    for i, part in enumerate(parts):
        left = line if i == 0 else ""
        yield f"{left:<{at}}# {part}" if part else left
