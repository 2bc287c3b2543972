"""The contract: what a world that words move in has to do, and what else it may declare.

``RobotWorld`` (robosuite) and ``GymWorld`` (any Gymnasium environment) are the two that there are;
:class:`vlm_agent.world.env.LanguageActionEnv` makes episodes of words out of either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import ActionVocabulary, Meaning
from vlm_agent.world.facts import Fact, all_facts
from vlm_agent.world.instructions import Instructions

NO_STAGE = "none"
"""The stage of an episode that has reached none."""


@dataclass(frozen=True)
class WorldSpec:
    """What is known of a world before an episode: all that others need to be told.

    Attributes:
        vocabulary: Its words and what they mean.
        instructions: In which sentences its task is told.
        own_facts: What it tells besides what every world does.
        stages: What is reached on the way, in order; the last one is success.
        privileged_names: What the numbers of its privileged state are; empty if it has none.
        no_expert: Why nobody can say the next useful word, beginning with a recipe's key; ``None``
            where somebody can.
        can_be_restored: Whether it can be put back to a moment without saying the words again.
        replays: Whether an episode is its seed and its words; ``None``: to be found out.
        robot: What ``{{ robot }}`` prints.
        history: How many pictures are seen at once, and how many of the last words are told.
    """

    vocabulary: ActionVocabulary
    instructions: Instructions
    own_facts: tuple[Fact, ...] = ()
    stages: tuple[str, ...] = ("solved",)
    privileged_names: tuple[str, ...] = ()
    no_expert: str | None = "env: nobody says that there is an expert"
    can_be_restored: bool = False
    replays: bool | None = None
    robot: str = ""
    history: int = 1

    @property
    def facts(self) -> tuple[Fact, ...]:
        """Everything its observations can tell."""
        sentences = self.instructions.sentences
        return all_facts(self.own_facts, self.vocabulary.words, sentences, self.history)

    @property
    def usual_facts(self) -> tuple[Fact, ...]:
        """Those of :attr:`facts` that are told without being asked for."""
        return tuple(fact for fact in self.facts if not fact.on_request)

    @property
    def has_expert(self) -> bool:
        """Whether somebody can say the next useful word."""
        return self.no_expert is None

    def check_expert(self) -> None:
        """Raise ``UserError`` if nobody can say the next useful word here."""
        if self.no_expert is not None:
            raise UserError(self.no_expert)


@dataclass(frozen=True)
class Happening:
    """What a word led to.

    Attributes:
        success: Whether the task is solved, as the world sees it.
        terminated: Whether the world ended the episode, solved or not.
        truncated: Whether it cut the episode off.
        stage: The stage of the present state, one of the world's; ``None`` or "none" for none.
        info: What a reward of the user's own may read.
    """

    success: bool
    terminated: bool = False
    truncated: bool = False
    stage: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


class Expert(Protocol):
    """Knows the way."""

    def act(self) -> int:
        """The action index of the next useful word, in the present state."""


class Spectator(Protocol):
    """A camera for films, which no policy sees through."""

    def frame(self) -> np.ndarray:
        """The picture, uint8 (H, W, 3)."""

    def close(self) -> None:
        """Free it."""


class World(ABC):
    """A world in one state, which words change.

    What must be there is abstract; the rest has a default that says it is not.

    Attributes:
        spec: What it declares.
    """

    spec: WorldSpec

    @property
    @abstractmethod
    def env(self) -> Any:
        """The environment underneath, which a reward of the user's own is given."""

    @abstractmethod
    def reset(self, seed: int) -> str | None:
        """Begin the episode of that seed, in which nothing else decides.

        Returns:
            The goal or the sentence of its instruction; ``None`` where there is one goal alone.
        """

    @abstractmethod
    def say(self, meaning: Meaning, number: int) -> Happening:
        """Do what a word means.

        Args:
            meaning: Of the word.
            number: How many words were said before it in this episode.
        """

    @abstractmethod
    def reward(self, success: bool) -> float:
        """The reward of the last word, of the kind that ``config.reward`` names."""

    @abstractmethod
    def picture(self) -> np.ndarray:
        """What the policy sees, uint8 (frame_size, frame_size, 3), upright."""

    @abstractmethod
    def state_bytes(self) -> Iterable[bytes]:
        """The present state, to tell whether a replay is one."""

    def about(self) -> dict[str, Any]:
        """What ``info`` tells of the present state besides what every world does."""
        return {}

    def privileged_state(self) -> np.ndarray:
        """What a critic may know, float32 (S,), as ``spec.privileged_names`` say."""
        raise UserError("value_input, state_coef: this world tells no privileged state")

    def expert(self) -> Expert:
        """Who knows the way from any state of this world; where ``spec.has_expert``."""
        raise NotImplementedError

    def snapshot(self) -> Any:
        """The present moment, for :meth:`restore`; where ``spec.can_be_restored``."""
        raise NotImplementedError

    def restore(self, snapshot: Any) -> None:
        """Be as at that moment of this episode, which has just been reset."""
        raise NotImplementedError

    def spectator(self, side: int, camera: str | None = None) -> Spectator | None:
        """A camera beside the scene that makes pictures of that side, if there is one.

        Args:
            side: In pixels.
            camera: Which one; the world's usual one by default.

        Raises:
            UserError: There is none of that name.
        """
        if camera is not None:
            raise UserError(f"camera: {camera!r}: this world has no cameras by name")
        return None

    @abstractmethod
    def close(self) -> None:
        """Free everything."""
