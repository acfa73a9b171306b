"""From what a user writes to teachers in their roles: "smollm2", "openai:MODEL", {"judge": "hf:..."}."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from kdbench import plugins
from kdbench.config import build, suggestion
from kdbench.errors import UnknownPlugin, UsageError
from kdbench.teacher import Teacher

TeacherSpec = str | Teacher


def connect(spec: TeacherSpec, config: Mapping[str, Any] | None = None) -> Teacher:
    """The teacher a spec names; one that is connected already is given back as it is.

    Raises UnknownPlugin for a scheme that no backend knows, ConfigError, MissingExtra.
    """
    if not isinstance(spec, str):
        return spec
    module = _backend(spec)
    settings = build(plugins.config_class(module), config or {}, f"teacher {spec}")
    teacher: Teacher = module.connect(spec, settings)
    return teacher


def _backend(spec: str) -> ModuleType:
    scheme = spec.partition(":")[0]
    schemes: dict[str, ModuleType] = {}
    for name in plugins.names("teachers"):
        module = plugins.load("teachers", name)
        schemes.update(dict.fromkeys(getattr(module, "SCHEMES", (name,)), module))
    if scheme not in schemes:
        raise UnknownPlugin(
            f"No teacher named '{spec}'{suggestion(scheme, schemes)} "
            "(written as smollm2, openai:MODEL, hf:PATH or scripted)"
        )
    return schemes[scheme]


def connect_roles(
    teacher: TeacherSpec | Mapping[str, TeacherSpec],
    roles: Mapping[str, frozenset[str]],
    config: Mapping[str, Any] | None = None,
) -> dict[str, Teacher]:
    """One teacher per role of the recipe; a single spec fills the role 'teacher'.

    Raises UsageError for a role that is missing or unknown, or a capability the backend lacks.
    """
    given = dict(teacher) if isinstance(teacher, Mapping) else {"teacher": teacher}
    for role in given:
        if role not in roles:
            raise UsageError(f"The recipe has no role '{role}'{suggestion(role, roles)}")
    missing = [role for role in roles if role not in given]
    if missing:
        raise UsageError(
            f"The recipe needs a teacher for the role '{missing[0]}': --teacher {missing[0]}=SPEC"
        )
    connected = {role: connect(spec, config) for role, spec in given.items()}
    for role, needs in roles.items():
        lacking = sorted(needs - connected[role].capabilities)
        if lacking:
            raise UsageError(
                f"Teacher {connected[role].identity} cannot '{lacking[0]}', which the role '{role}' needs; "
                "choose another teacher"
            )
    return connected


def spec_text(teacher: TeacherSpec | Mapping[str, TeacherSpec]) -> str:
    """What the user wrote, for people to read: "smollm2", or "teacher=smollm2, judge=openai:gpt"."""
    if isinstance(teacher, Mapping):
        return ", ".join(f"{role}={spec_text(spec)}" for role, spec in teacher.items())
    return teacher if isinstance(teacher, str) else teacher.identity
