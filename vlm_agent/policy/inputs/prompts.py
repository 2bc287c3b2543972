"""Prompt templates: one Jinja file, checked when the recipe is read, rendered for each word."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes

from vlm_agent.common.errors import UserError, read_text, unknown_name
from vlm_agent.policy.inputs.sandbox import (
    LONGEST,
    TimeIsUpError,
    environment,
    large_numbers,
    limited_time,
    rendered,
    unusual_parts,
)
from vlm_agent.world.actions import DEFAULT_WORDS, ActionVocabulary
from vlm_agent.world.facts import INSTRUCTION, Fact, all_facts, is_word_said

VARIABLES: dict[str, str] = {
    "image": "marks the place of the picture; exactly once",
    "task": "the task in a sentence",
    "robot": "the robot's name",
    "actions": "the words, joined by commas; also a list to loop over",
    "last_actions": "the last words said, the newest first: as many as there are pictures in one",
}
"""The variables of every template and what they stand for; the facts' names come besides."""

MOST_KINDS = 2000
"""How many combinations of the facts' values a template is tried with."""

_PICTURE = "\x00"
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")


class _WordList(list[str]):
    """Action words: prints as a comma-separated line, loops as a list."""

    def __str__(self) -> str:
        return ", ".join(self)


@dataclass(frozen=True)
class PromptTemplate:
    """A checked template.

    Attributes:
        source: The Jinja text.
        task: The value of ``{{ task }}``, where no fact says which sentence it is.
        robot: The value of ``{{ robot }}``.
        words: The values of ``{{ actions }}``.
        facts: What observations tell, in their order; each is a variable of its name. By default
            those of a robot's arm; of those that are told on request, the ones it prints are kept.
        senseless: When a word makes no sense: (word's index, fact's name, fact's value). Where
            the facts are a robot's by default, so is this for its eight words.

    Raises:
        UserError: The template, or a value for it, cannot be used; every reason is named.
    """

    source: str
    task: str
    robot: str = "Panda"
    words: tuple[str, ...] = DEFAULT_WORDS
    facts: tuple[Fact, ...] = ()
    senseless: tuple[tuple[int, str, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.facts:
            object.__setattr__(self, "facts", all_facts(words=self.words))
            if len(self.words) == len(DEFAULT_WORDS):
                object.__setattr__(self, "senseless", ActionVocabulary().senseless)
        problems = self._problems()
        if problems:
            raise UserError("; ".join(problems))
        told = self._told_facts()
        asked = tuple(fact for fact in self.facts if not fact.on_request or fact in told)
        object.__setattr__(self, "facts", asked)

    def render(self, facts: Sequence[int]) -> tuple[str, str]:
        """The text before and the text after the picture.

        Args:
            facts: Their values, in the order of :attr:`facts`.
        """
        before, after = self._render(facts).split(_PICTURE)
        return before, after

    @property
    def fact_names(self) -> tuple[str, ...]:
        """What observations have to tell, in this order."""
        return tuple(fact.name for fact in self.facts)

    @property
    def start_facts(self) -> tuple[int, ...]:
        """Facts of an episode's beginning: any do where only the prompt's end matters."""
        return tuple(fact.start for fact in self.facts)

    def check_facts(self, told: Sequence[str]) -> None:
        """Refuse environments that tell other facts than this prompt was made for.

        Raises:
            UserError: With both lists.
        """
        if tuple(told) != self.fact_names:
            raise UserError(
                f"the policy reads the facts {', '.join(self.fact_names)}, but the environments "
                f"tell {', '.join(told)}: make the pool with facts=policy.facts"
            )

    def tells_the_same(self, other: PromptTemplate) -> bool:
        """Whether another template makes the same prompts of the same world.

        Facts that neither of them tells may differ.
        """
        mine = self._told_facts()
        if INSTRUCTION not in {fact.name for fact in mine} and self.task != other.task:
            return False
        return (mine, self.source, self.robot, self.words) == (
            other._told_facts(),
            other.source,
            other.robot,
            other.words,
        )

    def _told_facts(self) -> tuple[Fact, ...]:
        """Those of the facts that the template prints or asks about, in the order of names."""
        names = jinja2.meta.find_undeclared_variables(environment().parse(self.source))
        told = [
            fact
            for fact in self.facts
            if fact.name in names
            or (fact.name == INSTRUCTION and "task" in names)
            or (is_word_said(fact.name) and "last_actions" in names)
        ]
        return tuple(sorted(told, key=lambda fact: fact.name))

    def _render(self, facts: Sequence[int]) -> str:
        told = {fact: int(value) for fact, value in zip(self.facts, facts, strict=True)}
        values: dict[str, Any] = {
            "image": _PICTURE,
            "task": self.task,
            "robot": self.robot,
            "actions": _WordList(self.words),
            "last_actions": _WordList(
                str(fact.show(value)) for fact, value in told.items() if is_word_said(fact.name)
            ),
            **{fact.name: fact.show(value) for fact, value in told.items()},
        }
        if INSTRUCTION in values:
            values["task"] = values[INSTRUCTION]
        try:
            return rendered(self.source, values)
        except TimeIsUpError:
            raise
        except Exception as error:  # whatever a template's own code may raise
            shown = ", ".join(f"{fact.name}: {value}" for fact, value in told.items())
            raise UserError(f"the template cannot be rendered: {error} ({shown})") from None

    def _problems(self) -> list[str]:
        try:
            tree = environment().parse(self.source)
        except jinja2.TemplateSyntaxError as error:
            return [f"line {error.lineno}: {error.message}"]
        known = {*VARIABLES, *self.fact_names}
        unknown = jinja2.meta.find_undeclared_variables(tree) - known
        problems = [unknown_name("variable", name, known) for name in sorted(unknown)]
        if (places := _image_places(tree)) != [True]:
            found = f"found {len(places)} of them" if len(places) != 1 else "it stands in one"
            problems.append(
                f"{{{{ image }}}} must stand exactly once, outside of conditions and loops; {found}"
            )
        problems += unusual_parts(tree)
        problems += [f"the number {number} is above {LONGEST}" for number in large_numbers(tree)]
        texts = {"the template": self.source, "task": self.task, "robot": self.robot}
        texts |= {f"the action word {word!r}": word for word in self.words}
        texts |= {f"{fact.name} {v!r}": v for fact in self.facts for v in fact.values}
        for place, text in texts.items():
            if token := _SPECIAL_TOKEN.search(text):
                problems.append(f"{place} contains the special token {token.group()!r}")
            if _PICTURE in text:
                problems.append(f"{place} contains a NUL character")
        return problems or self._rendering_problems()

    def _rendering_problems(self) -> list[str]:
        """Render with every kind of facts, and with the steps of a long episode."""
        usual = 1000
        start = {fact.name: [fact.start] for fact in self.facts} | {"words_left": [usual]}
        named = {fact.name: range(len(fact.values)) for fact in self.facts if fact.values}
        kinds = [{**start, **named}]
        kinds += [{**start, "step": [n], "words_left": [usual - n]} for n in range(usual + 1)]
        try:
            with limited_time():
                for kind in kinds:
                    values = itertools.product(*(kind[name] for name in self.fact_names))
                    for facts in itertools.islice(values, MOST_KINDS):
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
