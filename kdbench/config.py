"""Strict configuration: YAML in, one frozen pydantic model out, one clear sentence if it is wrong.

build(Config, {"temprature": 0.7}, "recipe tinystories")
ConfigError: No key 'temprature' in the config of recipe tinystories. Did you mean 'temperature'? ...
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from kdbench.errors import ConfigError


class StrictConfig(BaseModel):
    """Base of every config: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def build(model: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Build a config object from plain values.

    `where` names the config in messages ("recipe tinystories"). Raises ConfigError, which names
    each bad key, its value and its bounds.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as exc:
        problems = [
            _sentence(model, e["loc"], e["type"], e["msg"], e["input"]) + _did_you_mean(e)
            for e in exc.errors()
        ]
        raise ConfigError(f"Config of {where}: " + "; ".join(problems)) from exc


def _sentence(model: type[BaseModel], loc: tuple[int | str, ...], kind: str, message: str, value: Any) -> str:
    key = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        known = _keys_at(model, loc[:-1])
        return f"no key '{key}'{suggestion(str(loc[-1]), known)}"
    if kind == "missing":
        return f"key '{key}' is missing"
    if kind == "value_error":
        # Our own validator's sentence; one about several keys stands for itself.
        message = message.removeprefix("Value error, ")
        if not loc:
            return message
    shown = json.dumps(value, default=str)
    # Pydantic's own text carries the bounds: "Input should be less than or equal to 2".
    return f"{key} = {shown[:80]}: {message[0].lower()}{message[1:]}"


def _did_you_mean(error: ErrorDetails) -> str:
    """The closest of the words that a Literal allows."""
    expected = error.get("ctx", {}).get("expected", "") if error["type"] == "literal_error" else ""
    known = re.findall(r"'([^']+)'", expected)
    close = difflib.get_close_matches(str(error["input"]), known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _keys_at(model: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """The keys of the nested model at `loc`, as far as plain nesting can be followed."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        kinds = (field.annotation, *get_args(field.annotation))
        nested = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if nested:
            model = nested[0]
    return list(model.model_fields)


def suggestion(name: str, known: Iterable[str]) -> str:
    """'. Did you mean 'x'? Available: ...' for a name that is not among the known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f". Did you mean '{close[0]}'?" if close else "."
    return f"{hint} Available: {', '.join(known) or 'none'}"


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice instead of silently keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # "<<: *shared" brings keys that those beside it may replace
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(
                    f"Key '{key}' is written twice (line {key_node.start_mark.line + 1}); keep one of them"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ConfigError where the file is missing, broken or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"Cannot read {path}: {exc}") from exc
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse YAML text that must be a mapping. Raises ConfigError."""
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as exc:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(exc).split())}") from exc
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping of keys to values, not {type(values).__name__}")
    return values


def with_sets(values: Mapping[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with each `key.sub=value` of the command line put in.

    The value is read as YAML, so `n=3`, `words=[a, b]` and `name=x` all do what they say.
    Raises ConfigError for an entry without '=' or a path through something that is no mapping.
    """
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for entry in sets:
        path, equals, text = entry.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {entry}: write it as key=value, for example sampling.temperature=0.8")
        try:
            value = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as exc:
            raise ConfigError(f"--set {entry}: the value is not valid YAML") from exc
        put(result, path.strip(), value)
    return result


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path inside nested mappings, in place. Raises ConfigError."""
    *parents, last = path.split(".")
    spot = values
    for part in parents:
        nested = spot.setdefault(part, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"Cannot set '{path}': '{part}' holds {nested!r}, not a group of keys")
        spot = nested
    spot[last] = value


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, keys in the given order; reads back as the same values."""
    # Escaped: PyYAML reads some characters it writes plainly, such as U+0085, as line breaks.
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=False)


def canonical_hash(value: Any) -> str:
    """sha256 of the canonical JSON of plain values: equal values, equal hash, on any machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
