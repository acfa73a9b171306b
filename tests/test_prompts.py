"""Templates: strict about variables, shut in a sandbox, hashed, and overridable one by one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kdbench.errors import TemplateError
from kdbench.prompts import Prompts


def prompts(tmp_path: Path, text: str) -> Prompts:
    (tmp_path / "t.j2").write_text(text)
    return Prompts("mine", beside=tmp_path)


def test_a_template_becomes_a_message(tmp_path: Path) -> None:
    message = prompts(tmp_path, "Say {{ word }}.\n").user("t", word="hi")
    assert (message.role, message.content) == ("user", "Say hi.")


def test_a_missing_variable_is_named_with_what_is_given(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"mine/t\.j2.*'word'.*given: noun, verb"):
        prompts(tmp_path, "{{ word }}").render("t", noun=1, verb=2)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ words.append('x') }}",
        "{{ self.__init__.__globals__ }}",
        "{% for x in range(999999999) %}x{% endfor %}",
    ],
)
def test_the_sandbox_holds(tmp_path: Path, attack: str) -> None:
    with pytest.raises(TemplateError):
        prompts(tmp_path, attack).render("t", words=["a"])


def test_a_value_is_never_a_template(tmp_path: Path) -> None:
    assert prompts(tmp_path, "{{ reply }}").render("t", reply="{{ 7 * 7 }}") == "{{ 7 * 7 }}"


def test_missing_and_broken_templates_say_where(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"No template mine/other\.j2; looked in"):
        prompts(tmp_path, "x").render("other")
    with pytest.raises(TemplateError, match=r"mine/t\.j2, line 2"):
        prompts(tmp_path, "x\n{% if %}").render("t")


def test_an_override_goes_first_and_shows_in_the_hashes(tmp_path: Path) -> None:
    shipped = Prompts("tinystories")
    name = "tinystories/story.j2"
    (tmp_path / "tinystories").mkdir()
    (tmp_path / name).write_text("mine")
    overridden = Prompts("tinystories", override=tmp_path)
    assert overridden.render(Path(name).stem) == "mine"
    assert overridden.hashes()[name] == hashlib.sha256(b"mine").hexdigest()
    assert overridden.hashes()[name] != shipped.hashes()[name]
    assert overridden.hashes().keys() == shipped.hashes().keys()


def test_what_all_recipes_share_is_found_after_a_recipe_s_own(tmp_path: Path) -> None:
    (tmp_path / "repair.j2").write_text("my own repair of {{ problem }}")
    assert Prompts("mine", beside=tmp_path).render("repair", problem="x") == "my own repair of x"
    assert "x" in Prompts("mine").render("repair", problem="x")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "repair.j2").write_text("for all")
    assert Prompts("tinystories", override=tmp_path).render("repair", problem="x") == "for all"
    assert "shared/repair.j2" in Prompts("tinystories").hashes()
