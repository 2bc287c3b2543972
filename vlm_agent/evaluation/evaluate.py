"""``evaluate``: episodes on fixed seeds, success with an interval, everything kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.seeding import SPLITS, Split, derive_rng, episode_seed
from vlm_agent.common.statistics import wilson_interval
from vlm_agent.distributed.reductions import gather_unless_stopped, rank_and_size
from vlm_agent.policy.decisions import act
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.pool import EnvPool

Speaker = Callable[[Observations, np.ndarray | None], np.ndarray]
"""From B observations and uniform numbers (B,) (``None``: be greedy) to action indices (B,)."""


@dataclass(frozen=True)
class Evaluation:
    """What came of some episodes.

    Attributes:
        episodes: The finished episodes, in the order of their numbers.
        words: The action words.
        about: Facts about the evaluation, for who reads what it writes.
        stages: What is reached on the way, in order; the last one is success.
    """

    episodes: tuple[Episode, ...]
    words: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = ()

    @property
    def success_rate(self) -> float:
        """The share of the episodes that were solved; NaN without any."""
        return self._mean([episode.success for episode in self.episodes])

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the success rate."""
        return wilson_interval(sum(e.success for e in self.episodes), len(self.episodes))

    @property
    def mean_return(self) -> float:
        """The mean undiscounted sum of rewards."""
        return self._mean([episode.episode_return for episode in self.episodes])

    @property
    def mean_length(self) -> float:
        """The mean number of words that the policy said."""
        return self._mean([episode.length for episode in self.episodes])

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    def rates(self) -> dict[str, Any]:
        """Facts, rates and the interval, without the single episodes."""
        rates = episode_rates(self.episodes, self.stages)
        mean_return, mean_length = rates.pop("episode_return"), rates.pop("episode_length")
        low, high = self.interval
        return {
            **self.about,
            "num_eval_episodes": len(self.episodes),
            **rates,
            "mean_return": mean_return,
            "mean_length": mean_length,
            "ci95_low": low,
            "ci95_high": high,
        }

    def to_dict(self) -> dict[str, Any]:
        """What an evaluation writes: the rates, and each episode's seed and words."""
        episodes = [
            {
                "seed": episode.seed,
                "success": episode.success,
                "stage": episode.stage,
                **({"goal": episode.goal} if episode.goal else {}),
                "return": episode.episode_return,
                "length": episode.length,
                "words": [self.words[action] for action in episode.actions],
            }
            for episode in self.episodes
        ]
        return {**self.rates(), "vocabulary": list(self.words), "episodes": episodes}


def evaluate(
    policy: VLMPolicy,
    pool: EnvPool,
    num_episodes: int = 10,
    *,
    seed: int = 0,
    split: Split = "validation",
    greedy: bool = True,
    on_episode: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Play episodes with a policy, shared among all processes that run together.

    What was running in the pool is forgotten; a collector takes its episodes up again by itself.

    Args:
        policy: Who speaks.
        pool: This process's environments.
        num_episodes: How many episodes.
        seed: Decides the episodes.
        split: Whose episodes.
        greedy: Take the most probable word instead of sampling.
        on_episode: Called after each episode of this process, for progress bars. It may raise
            :class:`Stopped`, which then leaves this in all processes.

    Returns:
        The episodes of all processes, in each of them.

    Raises:
        UserError: There is nothing to play, or the environments do not tell the facts that the
            policy reads.
    """
    if num_episodes < 1:
        raise UserError(f"num_episodes: {num_episodes}: expected at least one episode")
    if split not in SPLITS:
        raise UserError(f"split: {unknown_name('split', split, SPLITS)}")
    policy.encoder.template.check_facts(pool.facts)
    rank, size = rank_and_size()
    was_training = policy.training
    policy.eval()
    mine = range(rank, num_episodes, size)

    def play_mine() -> list[tuple[int, Episode]]:
        return [*play(speaker(policy), pool, mine, seed, greedy, split, on_episode).items()]

    try:
        played = dict(gather_unless_stopped(play_mine))
    finally:
        policy.train(was_training)
    episodes = tuple(played[number] for number in sorted(played))
    about = {"split": split, "greedy": greedy, "seed": seed}
    return Evaluation(episodes, policy.words, about, pool.world.stages)


def speaker(policy: VLMPolicy) -> Speaker:
    """A policy as something that speaks."""
    return lambda observations, uniforms: act(policy, observations, uniforms).actions


def play(
    speak: Speaker,
    pool: EnvPool,
    numbers: Iterable[int],
    seed: int,
    greedy: bool,
    split: Split = "validation",
    on_episode: Callable[[], object] = lambda: None,
) -> dict[int, Episode]:
    """Play episodes.

    Episode ``n`` has the seed ``episode_seed(split, seed, n)`` and its own random numbers, so it
    does not matter which environment plays it, or in which company.

    Args:
        speak: Chooses the words.
        pool: The environments; what was running in them is forgotten.
        numbers: Which episodes to play.
        seed: The evaluation's seed.
        greedy: Take the most probable word instead of sampling.
        split: Whose episodes.
        on_episode: Called after each episode, for progress bars.

    Returns:
        Number -> episode.
    """
    waiting = list(numbers)[::-1]
    done: dict[int, Episode] = {}
    playing: dict[int, int] = {}  # environment -> number of its episode
    seen: dict[int, Observations] = {}  # environment -> its last observation
    episodes: dict[int, Episode] = {}
    while waiting or playing:
        free = [slot for slot in range(pool.num_envs) if slot not in playing]
        begun = {slot: waiting.pop() for slot in free if waiting}
        if begun:
            playing |= begun
            fresh = {slot: Episode(episode_seed(split, seed, n)) for slot, n in begun.items()}
            episodes |= fresh
            first = pool.reset(fresh)
            seen |= {slot: first[i] for i, slot in enumerate(begun)}
        slots = sorted(playing)
        uniforms = None
        if not greedy:
            draws = [_draw(seed, playing[slot], len(episodes[slot].actions)) for slot in slots]
            uniforms = np.array(draws)
        actions = speak(Observations.stack([seen[slot] for slot in slots]), uniforms)
        led_to = pool.step({slot: int(actions[i]) for i, slot in enumerate(slots)})
        for i, slot in enumerate(slots):
            if led_to.infos[i].get("lost"):
                waiting.append(playing.pop(slot))  # its worker failed: it is played anew
                continue
            episodes[slot] = episodes[slot].after(actions[i], led_to.rewards[i], led_to.infos[i])
            seen[slot] = led_to.observations[i]
            if led_to.terminated[i] or led_to.truncated[i]:
                done[playing.pop(slot)] = episodes[slot]
                on_episode()
    return done


def _draw(seed: int, number: int, step: int) -> float:
    return float(derive_rng(seed, "eval-sample", number, step).random())


def episode_rates(episodes: Sequence[Episode], stages: Sequence[str] = ()) -> dict[str, Any]:
    """Means over finished episodes, ``None`` without any: return, length, success, stages.

    Of the episodes that end in the first updates of a run, short ones are more than their share,
    and those are solved more often: what a policy can do is told by an evaluation.

    Args:
        episodes: The episodes.
        stages: What is reached on the way, in order; the last one is success.

    Returns:
        ``episode_return``, ``episode_length``, ``success_rate``, a rate for each other stage, and
        where there are several goals ``success_by_goal``.
    """

    def mean(values: Iterable[float]) -> float | None:
        return float(np.mean(list(values))) if episodes else None

    def reached(place: int) -> float | None:
        return mean(e.success or e.stage in stages[place:] for e in episodes)

    rates: dict[str, Any] = {
        "episode_return": mean(episode.episode_return for episode in episodes),
        "episode_length": mean(episode.length for episode in episodes),
        "success_rate": mean(episode.success for episode in episodes),
        **{f"{stage}_rate": reached(place) for place, stage in enumerate(stages[:-1])},
    }
    if goals := sorted({episode.goal for episode in episodes if episode.goal}):
        rates["success_by_goal"] = {
            goal: float(np.mean([e.success for e in episodes if e.goal == goal])) for goal in goals
        }
    return rates


def read_result(path: Path) -> dict[str, Any]:
    """What an evaluation wrote.

    Raises:
        UserError: The file is missing or holds no evaluation.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no evaluation in {str(path)!r}: {error}") from None
    if not isinstance(result, dict) or not {"policy", "split", "episodes"} <= result.keys():
        raise UserError(f"no evaluation in {str(path)!r}: vlm-agent eval --json FILE writes one")
    return result
