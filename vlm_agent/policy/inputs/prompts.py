"""Prompt templates: one Jinja file, checked when the recipe is read, rendered for each word."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from vlm_agent.common.errors import UserError, read_text, unknown_name
from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.observations import FACTS

VARIABLES: dict[str, str] = {
    "image": "marks the place of the picture; exactly once",
    "task": "the task in a sentence",
    "robot": "the robot's name",
    "actions": "the eight words, joined by commas; also a list to loop over",
    "gripper": "'open' or 'closed'",
    "last_action": "the word said before this one, or 'none'",
    "step": "how many words have been said in this episode",
    "words_left": "how many words may still be said",
}
"""The variables of a template and what they stand for."""

_PICTURE = "\x00"
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")


class _WordList(list[str]):
    """The action words: prints as a comma-separated line, loops as a list."""

    def __str__(self) -> str:
        return ", ".join(self)


@dataclass(frozen=True)
class PromptTemplate:
    """A checked template.

    Attributes:
        source: The Jinja text.
        task: The value of ``{{ task }}``.
        robot: The value of ``{{ robot }}``.
        words: The values of ``{{ actions }}`` and, by index, of ``{{ last_action }}``.

    Raises:
        UserError: The template, or a value for it, cannot be used; every reason is named.
    """

    source: str
    task: str
    robot: str = "Panda"
    words: tuple[str, ...] = DEFAULT_WORDS

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise UserError("; ".join(problems))

    def render(self, facts: Sequence[int]) -> tuple[str, str]:
        """The text before and the text after the picture.

        Args:
            facts: Scene facts in the order of :data:`vlm_agent.world.observations.FACTS`.
        """
        before, after = self._render(facts).split(_PICTURE)
        return before, after

    def _render(self, facts: Sequence[int]) -> str:
        fact = dict(zip(FACTS, (int(f) for f in facts), strict=True))
        said = fact["last_action"]
        values: dict[str, Any] = {
            "image": _PICTURE,
            "task": self.task,
            "robot": self.robot,
            "actions": _WordList(self.words),
            "gripper": "closed" if fact["gripper_closed"] else "open",
            "last_action": self.words[said] if said < len(self.words) else "none",
            "step": fact["step"],
            "words_left": fact["words_left"],
        }
        try:
            return _compile(self.source).render(values).strip()
        except Exception as error:  # whatever a template's own code may raise
            raise UserError(f"the template cannot be rendered: {error} ({fact})") from None

    def _problems(self) -> list[str]:
        try:
            tree = _environment().parse(self.source)
        except jinja2.TemplateSyntaxError as error:
            return [f"line {error.lineno}: {error.message}"]
        unknown = jinja2.meta.find_undeclared_variables(tree) - set(VARIABLES)
        problems = [unknown_name("variable", name, VARIABLES) for name in sorted(unknown)]
        if (places := _image_places(tree)) != [True]:
            found = f"found {len(places)} of them" if len(places) != 1 else "it stands in one"
            problems.append(
                f"{{{{ image }}}} must stand exactly once, outside of conditions and loops; {found}"
            )
        texts = {"the template": self.source, "task": self.task, "robot": self.robot}
        texts |= {f"the action word {word!r}": word for word in self.words}
        for place, text in texts.items():
            if token := _SPECIAL_TOKEN.search(text):
                problems.append(f"{place} contains the special token {token.group()!r}")
            if _PICTURE in text:
                problems.append(f"{place} contains a NUL character")
        return problems or self._rendering_problems()

    def _rendering_problems(self) -> list[str]:
        """Render with every kind of facts, and with the steps of a usual episode."""
        none, usual = len(self.words), 120
        kinds = [(grip, said, 0, usual) for grip in (0, 1) for said in range(none + 1)]
        steps = [(0, none, step, usual - step) for step in range(usual + 1)]
        try:
            for facts in kinds + steps:
                self._render(facts)
        except UserError as error:
            return [str(error)]
        return []


def _image_places(node: jinja2.nodes.Node, plain: bool = True) -> list[bool]:
    """For each ``image`` in a template, whether it is sure to be rendered exactly once."""
    if isinstance(node, jinja2.nodes.Name) and node.name == "image":
        return [plain]
    plain = plain and isinstance(node, jinja2.nodes.Template | jinja2.nodes.Output)
    return [place for child in node.iter_child_nodes() for place in _image_places(child, plain)]


def load_template_source(name: str, search: Sequence[Path] = ()) -> str:
    """Read a template file, looked for in the current folder and then in ``search``.

    Raises:
        UserError: No such file; the message names the nearest ones.
    """
    for folder in (Path(), *search):
        path = folder / name
        if path.is_file():
            return read_text(path)
    siblings = [p for folder in (Path(), *search) for p in (folder / name).parent.glob("*.jinja")]
    valid = {str(Path(name).parent / p.name) for p in siblings}
    raise UserError(
        unknown_name("template file", name, valid) if valid else f"no such template file: {name!r}"
    )


@functools.cache
def _environment() -> jinja2.sandbox.SandboxedEnvironment:
    return jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)
