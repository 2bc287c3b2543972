"""``PlaySession``: one person, one world, and a policy to be asked at every moment."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import episode_seed
from vlm_agent.demonstrations.dataset import save_demonstration
from vlm_agent.demonstrations.demonstrate import Demonstration
from vlm_agent.demonstrations.folder import DemonstrationsFolder, demonstration_seed
from vlm_agent.play.pictures import jpeg
from vlm_agent.policy.building import with_template
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.report.mind import Mind
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode
from vlm_agent.world.facts import INSTRUCTION, facts_named
from vlm_agent.world.observations import Observations
from vlm_agent.world.registry import declare

SIDE = 384
"""Of the scene's picture, in pixels."""

Speaker = Literal["you", "policy"]

MakeMind = Callable[[VLMPolicy], Mind]


@dataclasses.dataclass(frozen=True)
class Table:
    """What all sessions of one page share.

    Attributes:
        policy: Who is asked.
        config: The scene.
        gamma: The discount of its rewards.
        recipe: Of the demonstrations that are saved; ``None`` where none can be.
        make_mind: From a policy to how it is asked.
        lock: Held while it is.
    """

    policy: VLMPolicy
    config: EnvConfig
    gamma: float
    recipe: Recipe | None
    make_mind: MakeMind
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class PlaySession:
    """A world in which a person and a policy say words, in whatever turns they like.

    Everything is done in one thread: a world's OpenGL context belongs to it. After each call,
    :meth:`state` tells what there is to see.

    Args:
        table: What it shares with others.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.template = table.policy.encoder.template
        self._mind = table.make_mind(table.policy)
        self._is_own_prompt = False
        facts = facts_named(table.policy.facts, declare(table.config).facts)
        self.env = LanguageActionEnv(table.config, table.gamma, facts=facts)
        self._scene = self.env.world.spectator(SIDE)
        self.number = -1
        self.notice = ""
        self.begin(_first_free(table.recipe))

    def close(self) -> None:
        """Free the world."""
        if self._scene is not None:
            self._scene.close()
        self.env.close()

    def begin(self, number: int | None = None) -> None:
        """Another episode: that of a number, or the next one.

        Raises:
            UserError: There is none of that number.
        """
        wanted = self.number + 1 if number is None else number
        if type(wanted) is not int or not 0 <= wanted < 10**6:
            raise UserError(f"number: {wanted!r}: expected that of an episode, counted from 0")
        self.number = wanted
        recipe = self.table.recipe
        seed = (
            episode_seed("train", 0, "demo", self.number)
            if recipe is None
            else demonstration_seed(recipe.run.seed, self.number)
        )
        self._observation, _ = self.env.reset(seed=seed)
        self.episode = Episode(seed)
        self.by: list[Speaker] = []
        self.rewards: list[float] = []
        self.is_over = self.is_saved = False
        self._seen: list[Observations] = []
        self._ask()

    def say(self, action: int, by: Speaker = "you") -> None:
        """Say a word.

        Raises:
            UserError: The episode is over, or there is no such word.
        """
        if self.is_over:
            raise UserError("the episode is over: begin another one")
        action = self.env.vocabulary.checked(action)
        self._seen.append(self._now)
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        self.episode = self.episode.after(action, reward, info)
        self.by.append(by)
        self.rewards.append(float(reward))
        self.is_over = terminated or truncated
        self._ask()

    def advance(self) -> None:
        """Have the policy say what it finds most probable."""
        self.say(int(np.argmax(self._judged.probabilities[0])), "policy")

    def set_prompt(self, source: str, instruction: str | None = None) -> None:
        """Have the policy read another template, or be told another task, from now on.

        Args:
            source: The Jinja text.
            instruction: What is asked for, in place of what the world asks for.

        Raises:
            UserError: The template cannot be used; the one before stays.
        """
        mine = self.table.policy.encoder.template
        facts = mine.facts
        changes: dict[str, Any] = {"source": source}
        if instruction:
            changes["task"] = instruction
            facts = tuple(_always(fact, instruction) for fact in facts)
        template = dataclasses.replace(mine, facts=facts, **changes)
        if template.fact_names != mine.fact_names:
            raise UserError("the template asks for facts that this policy does not read")
        with self.table.lock:
            self._mind = self.table.make_mind(with_template(self.table.policy, template))
        self.template = template
        self._is_own_prompt = template != mine
        self._ask()

    def save(self) -> None:
        """Write what was said as a demonstration, which a warm start reads.

        Raises:
            UserError: The task is not solved, or there is no place for it.
        """
        recipe = self.table.recipe
        if recipe is None:
            raise UserError("this policy's recipe makes no demonstrations: nothing can be saved")
        if not self.episode.success:
            raise UserError("demonstrations are of solved episodes: this one is not")
        if self.is_saved:
            raise UserError("this episode is saved already")
        actions = np.array(self.episode.actions)
        played = Demonstration(self.episode, Observations.stack(self._seen), actions)
        count = save_demonstration(recipe, self.number, played)
        self.is_saved = True
        folder = DemonstrationsFolder(recipe).path
        self.notice = (
            f"saved in {folder}. Learn from them: vlm-agent sft --demonstrations {folder} "
            f"--num_demo_episodes {count} and the settings of this policy's recipe"
        )

    def _ask(self) -> None:
        """Have the policy judge the present moment."""
        facts = self.table.policy.facts
        self._now = Observations.from_env(self._observation, facts)
        one = Observations.stack([self._now])
        states = self.env.privileged_state()[None]
        assert self._mind.judge is not None
        began = time.perf_counter()
        with self.table.lock:
            self._judged = self._mind.judge(Observations(one.frames, one.facts, states))
        self.thinking_ms = 1000 * (time.perf_counter() - began)

    def state(self) -> dict[str, Any]:
        """What there is to see, as JSON values."""
        frame = self._now.frames
        said = [self.env.vocabulary.words[action] for action in self.episode.actions]
        values = self._judged.values
        notice, self.notice = self.notice, ""
        return {
            "number": self.number,
            "seed": self.episode.seed,
            "sentence": self._sentence(),
            "said": [
                {"word": word, "by": by, "reward": round(reward, 3)}
                for word, by, reward in zip(said, self.by, self.rewards, strict=True)
            ],
            "words_left": self.env.words_left,
            "return": round(self.episode.episode_return, 3),
            "stage": self.episode.stage,
            "success": self.episode.success,
            "over": self.is_over,
            "saved": self.is_saved,
            "frame": jpeg(frame[-frame.shape[1] :]),
            "has_scene": self._scene is not None,
            "probabilities": np.round(self._judged.probabilities[0], 4).tolist(),
            "value": None if values is None else round(float(values[0]), 3),
            "prompt": self._mind.prompt(self._now.facts.tolist()),
            "template": self.template.source,
            "own_prompt": self._is_own_prompt,
            "thinking_ms": round(self.thinking_ms, 1),
            "notice": notice,
        }

    def scene(self) -> str | None:
        """The scene from beside it, as a JPEG; it takes longer than all the rest."""
        return None if self._scene is None else jpeg(self._scene.frame())

    def _sentence(self) -> str:
        sentences = self.env.world.spec.instructions.sentences
        return sentences[self.env.instruction] if sentences else self.template.task


def _first_free(recipe: Recipe | None) -> int:
    """The number of the first episode that can be saved."""
    folder = None if recipe is None else DemonstrationsFolder(recipe)
    return folder.stop if folder is not None and folder.exists else 0


def _always(fact: Any, sentence: str) -> Any:
    """An instruction that is this sentence, whatever the world asks for."""
    if fact.name != INSTRUCTION:
        return fact
    return dataclasses.replace(fact, values=(sentence,) * len(fact.values))
