"""Prompt templates: sandboxed Jinja2, strict about variables, each with the sha256 of its source.

    prompts = Prompts("tinystories")
    prompts.user("story", words=["cat", "jump", "happy"])   # -> one user Message
    prompts.hashes()                                        # {"tinystories/story.j2": "9c0f..."}

Templates are the user's and ours; a teacher's output is only ever a value put into one.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kdbench.errors import TemplateError
from kdbench.provenance import folder_sha256
from kdbench.records import Message

SHARED = "shared"


class Prompts:
    """The templates of one recipe: those under its name, then those that all recipes share.

    `name` is the folder's name under the shipped prompts and under `override`, a directory given
    with --prompts; `beside` is the folder of a user's own recipe file.
    """

    def __init__(self, name: str, override: Path | None = None, beside: Path | None = None) -> None:
        self.name = name
        self.is_overridden = override is not None
        places = [
            (name, override and override / name),
            (name, beside),
            (name, _shipped() / name),
            (SHARED, override and override / SHARED),
            (SHARED, _shipped() / SHARED),
        ]
        self._places = [(shown, folder) for shown, folder in places if folder is not None]
        self._folders = [folder for _, folder in self._places]

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        return ImmutableSandboxedEnvironment(
            loader=jinja2.FileSystemLoader([str(f) for f in self._folders]),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            auto_reload=False,
            cache_size=-1,  # a plain dict: the bounded cache takes a lock for every template of every prompt
        )

    def render(self, template: str, **values: Any) -> str:
        """The text of one template (`template` without .j2). Raises TemplateError."""
        shown = f"{self.name}/{template}.j2"
        try:
            return self._environment.get_template(f"{template}.j2").render(values).strip()
        except jinja2.TemplateNotFound as exc:
            raise TemplateError(
                f"No template {shown}; looked in {', '.join(map(str, self._folders))}"
            ) from exc
        except jinja2.UndefinedError as exc:
            raise TemplateError(
                f"Template {shown} uses a variable it is not given ({exc}); it is given: "
                f"{', '.join(sorted(values)) or 'none'}"
            ) from exc
        except jinja2.TemplateSyntaxError as exc:
            raise TemplateError(f"Template {shown}, line {exc.lineno}: {exc.message}") from exc
        except jinja2.exceptions.SecurityError as exc:
            raise TemplateError(
                f"Template {shown} reaches outside the sandbox: {exc}; remove that part"
            ) from exc
        except (TypeError, ValueError, ArithmeticError, LookupError) as exc:
            raise TemplateError(f"Template {shown} cannot be rendered: {type(exc).__name__}: {exc}") from exc

    def user(self, template: str, **values: Any) -> Message:
        """One template as a user's message."""
        return Message(role="user", content=self.render(template, **values))

    def system(self, template: str, **values: Any) -> Message:
        """One template as a system message."""
        return Message(role="system", content=self.render(template, **values))

    def hashes(self) -> dict[str, str]:
        """sha256 of every template's source, by name; an overridden template shows its own."""
        found: dict[str, str] = {}
        for shown, folder in self._places:
            for path in sorted(folder.glob("*.j2")) if folder.is_dir() else ():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found.setdefault(f"{shown}/{path.name}", digest)
        return dict(sorted(found.items()))


def shipped_sha256() -> str:
    """One hash over all templates that come with kdbench."""
    return folder_sha256(_shipped(), ["**/*.j2"])


def _shipped() -> Path:
    return Path(str(files("kdbench_prompts")))
