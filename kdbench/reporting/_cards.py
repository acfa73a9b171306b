"""What both cards share: a Jinja2 body under a YAML head, and how their parts are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from kdbench.errors import StorageError

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("kdbench.reporting"),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701 - Markdown, shown by hubs that sanitise it
    trim_blocks=True,
    lstrip_blocks=True,
)


def body(template: str, **values: Any) -> str:
    """The Markdown below the head."""
    return _TEMPLATES.get_template(template).render(values).strip()


def save(path: Path, head: str, text: str) -> None:
    """Write head and body as a README.md. Raises StorageError."""
    try:
        path.write_text(f"---\n{head.strip()}\n---\n\n{text}\n", encoding="utf-8")
    except OSError as exc:
        raise StorageError(f"Cannot write {path}: {exc.strerror or exc}; free some room") from exc


def teacher_names(info: Mapping[str, Any]) -> dict[str, str]:
    """Role -> identity of the teachers that run.json names, however they are written there."""
    teacher = info.get("teacher") or {}
    if not isinstance(teacher, Mapping):
        return {"teacher": str(teacher)}
    identity = teacher.get("identity") or teacher.get("spec") or teacher.get("ref")
    if isinstance(identity, Mapping):
        return {str(role): str(name) for role, name in identity.items()}
    return {"teacher": str(identity)} if identity else {}


def licence_of(info: Mapping[str, Any]) -> str | None:
    """The licence that run.json states; None where it states none."""
    licence = info.get("licence")
    return str(licence) if licence else None
