"""What a Gymnasium environment may declare, and what the tool makes of it.

An environment, or any wrapper around it, may have these attributes. All are optional:

- ``words``: what each word does, as ``words:`` in a recipe.
- ``facts``: name -> the names of its values, or ``None`` for a plain number. ``info[name]`` tells
  the present value: a whole number, or one of the names.
- ``instructions``: sentences for the task; by goal if there are several goals. Then
  ``info["instruction"]`` after a reset is the episode's goal, or one of the sentences.
- ``stages``: names of what is reached on the way, in order; ``info["stage"]`` is the present one.
- ``privileged_names`` and ``privileged_state()``: numbers that only a critic may know.
- ``expert_word()``: the next useful word, or its index.
- ``snapshot()`` and ``restore(snapshot)``: the present moment, and back to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import ActionVocabulary, Choice, Push
from vlm_agent.world.config import REWARDS, EnvConfig
from vlm_agent.world.contract import WorldSpec
from vlm_agent.world.facts import Fact
from vlm_agent.world.instructions import Instructions
from vlm_agent.world.vocabulary import read_words

ROBOSUITE_KEYS = (
    *("task", "tasks", "robot", "camera", "step_size", "control_steps", "controller_hz"),
    *("success_bonus", "randomize", "camera_shift", "camera_tilt", "object_colour", "light"),
)
"""Settings that mean nothing here."""

TAKEN_STAGES = {"none", "solved", "success", "learning", "farthest_success"}
"""Names that mean something else, alone or in metrics."""

SOLVED = "solved"
"""The last stage, in which an episode is that succeeded."""


class Declared:
    """The attributes of an environment and of the wrappers around it.

    Args:
        env: The outermost wrapper.
    """

    def __init__(self, env: gym.Env) -> None:
        self.env = env

    def has(self, name: str) -> bool:
        """Whether one of them has an attribute."""
        return self.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute of the outermost one that has it."""
        env = self.env
        while True:
            # gymnasium.Wrapper passes nothing on, except its own few names.
            if name in vars(env) or hasattr(type(env), name):
                return getattr(env, name)
            if not isinstance(env, gym.Wrapper):
                return default
            env = env.env


@dataclass(frozen=True)
class TellsInfo:
    """Reads a fact from the environment's ``info``.

    Attributes:
        name: Of the fact.
        values: The names of its values.
    """

    name: str
    values: tuple[str, ...]

    def __call__(self, env: Any) -> int:
        """The present value; 0 as long as ``info`` has none."""
        told = env.world.info.get(self.name, 0)
        if isinstance(told, str) and told in self.values:
            return self.values.index(told)
        is_whole = isinstance(told, int | np.integer)
        if is_whole and (not self.values or 0 <= told < len(self.values)):
            return int(told)
        expected = f"one of {', '.join(self.values)}" if self.values else "a whole number"
        raise UserError(f"facts: info[{self.name!r}] is {told!r}; expected {expected}")


def declare_gym(declared: Declared, config: EnvConfig) -> WorldSpec:
    """What the tool is to know of an environment.

    Raises:
        UserError: A declaration or a setting cannot be used; the message begins with the key.
    """
    if REWARDS.get(config.reward) == "robosuite":
        raise UserError(
            f"reward: {config.reward!r} is robosuite's; expected own, sparse or module:function"
        )
    usual = EnvConfig(env=config.env)
    for key in ROBOSUITE_KEYS:
        if getattr(config, key) != getattr(usual, key):
            raise UserError(f"{key}: is robosuite's, and env is {config.env!r}: leave it out")
    names = declared.get("privileged_names", ())
    if not _is_list_of_text(names):
        raise UserError(f"privileged_names: {names!r}: expected a list of names")
    return WorldSpec(
        vocabulary=_vocabulary(declared, config),
        instructions=_instructions(declared, config),
        own_facts=_facts(declared.get("facts", {})),
        stages=_stages(declared.get("stages", ())),
        privileged_names=tuple(names) if declared.has("privileged_state") else (),
        no_expert=None
        if declared.has("expert_word")
        else f"env: {config.env} has no expert: it declares no expert_word()",
        can_be_restored=declared.has("snapshot") and declared.has("restore"),
        robot=str(config.env).rpartition(":")[2],
        history=config.history,
    )


def _vocabulary(declared: Declared, config: EnvConfig) -> ActionVocabulary:
    words = declared.get("words") if config.words is None else config.words
    if not isinstance(words, Mapping):
        found = "nothing says" if words is None else f"{words!r} does not say"
        raise UserError(f"words: {found} what each word does in {config.env}: expected a mapping")
    vocabulary = read_words(words)
    space = declared.env.action_space
    for word, meaning in vocabulary.meanings.items():
        if isinstance(space, spaces.Discrete):
            if not isinstance(meaning, Choice) or not space.contains(meaning.number):
                low, high = space.start, space.start + space.n - 1
                raise UserError(
                    f"words: {word!r}: expected a number from {low} to {high}, an action of "
                    f"{config.env}"
                )
        elif isinstance(space, spaces.Box):
            size = int(np.prod(space.shape))
            if not isinstance(meaning, Push) or len(meaning.vector) != size:
                raise UserError(
                    f"words: {word!r}: expected a vector of {size} numbers, an action of "
                    f"{config.env}"
                )
            _check_range(word, meaning, space)
        else:
            raise UserError(
                f"env: the actions of {config.env} are {space}; words can say a number "
                "(Discrete) or a vector (Box): wrap the environment"
            )
    return vocabulary


def _check_range(word: str, meaning: Push, space: spaces.Box) -> None:
    bounds = zip(meaning.vector, space.low.ravel(), space.high.ravel(), strict=True)
    for part, low, high in bounds:
        if part is not None and not low <= part <= high:
            raise UserError(f"words: {word!r}: {part} is out of range: {low:g} to {high:g}")


def _instructions(declared: Declared, config: EnvConfig) -> Instructions:
    trained = config.instructions
    if trained is None:
        trained = declared.get("instructions")
    if trained is None:
        trained = [f"Solve {str(config.env).rpartition(':')[2]}."]
    return Instructions(trained, config.held_out_instructions, config.paraphrases)


def _facts(facts: Any) -> tuple[Fact, ...]:
    if not isinstance(facts, Mapping):
        raise UserError(f"facts: {facts!r}: expected a mapping from names to names of values")
    found = []
    for name, values in facts.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"facts: {name!r}: expected a name for a prompt, such as 'carrying'")
        if values is not None and (not _is_list_of_text(values) or not values):
            raise UserError(
                f"facts: {name!r}: {values!r}: expected a list of names, or None for a number"
            )
        told = tuple(values or ())
        found.append(
            Fact(name, f"info[{name!r}] of the environment", TellsInfo(name, told), 0, told)
        )
    return tuple(found)


def _stages(stages: Any) -> tuple[str, ...]:
    if not _is_list_of_text(stages) or len(set(stages)) != len(stages):
        raise UserError(f"stages: {stages!r}: expected a list of different names")
    if taken := [stage for stage in stages if stage in TAKEN_STAGES]:
        raise UserError(f"stages: {taken[0]!r} means something else: give it another name")
    return (*stages, SOLVED)


def _is_list_of_text(what: Any) -> bool:
    is_list = isinstance(what, Sequence) and not isinstance(what, str)
    return is_list and all(isinstance(part, str) and part for part in what)
