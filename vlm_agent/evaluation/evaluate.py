"""Evaluation: episodes on fixed seeds, success with an interval, everything kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy import stats
from tqdm import tqdm

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import Split, derive_rng, episode_seed
from vlm_agent.policy.decisions import act
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.rollout.collector import EpisodeRecord
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.pool import EnvPool
from vlm_agent.world.robosuite.scene import Stage

Speaker = Callable[[Observations, np.ndarray | None], np.ndarray]
"""From B observations and uniform numbers (B,) (``None``: be greedy) to action indices (B,)."""


def speaker(policy: VLMPolicy) -> Speaker:
    """A policy as something that speaks."""
    return lambda observations, uniforms: act(policy, observations, uniforms).actions


def evaluate(
    speak: Speaker,
    pool: EnvPool,
    numbers: Iterable[int],
    seed: int,
    greedy: bool,
    split: Split = "validation",
    on_episode: Callable[[], object] = lambda: None,
) -> dict[int, EpisodeRecord]:
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
    done: dict[int, EpisodeRecord] = {}
    playing: dict[int, int] = {}  # environment -> number of its episode
    seen: dict[int, Observations] = {}  # environment -> its last observation
    records: dict[int, EpisodeRecord] = {}
    while waiting or playing:
        free = [slot for slot in range(pool.num_envs) if slot not in playing]
        begun = {slot: waiting.pop() for slot in free if waiting}
        if begun:
            playing |= begun
            for slot, number in begun.items():
                records[slot] = EpisodeRecord(episode_seed(split, seed, number))
            fresh = pool.reset({slot: records[slot].episode for slot in begun})
            seen |= {slot: fresh[i] for i, slot in enumerate(begun)}
        slots = sorted(playing)
        uniforms = None
        if not greedy:
            draws = [_draw(seed, playing[slot], len(records[slot].actions)) for slot in slots]
            uniforms = np.array(draws)
        actions = speak(Observations.stack([seen[slot] for slot in slots]), uniforms)
        led_to = pool.step({slot: int(actions[i]) for i, slot in enumerate(slots)})
        for i, slot in enumerate(slots):
            records[slot].add(int(actions[i]), led_to.rewards[i], led_to.infos[i])
            seen[slot] = led_to.observations[i]
            if led_to.terminated[i] or led_to.truncated[i]:
                done[playing.pop(slot)] = records[slot]
                on_episode()
    return done


def evaluate_over_ranks(
    accelerator: Accelerator,
    policy: VLMPolicy,
    pool: EnvPool,
    num_episodes: int,
    seed: int,
    greedy: bool,
) -> list[EpisodeRecord]:
    """Play validation episodes, shared among all ranks; every rank gets all of them."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    with tqdm(
        total=num_episodes,
        desc="evaluating",
        unit="episode",
        leave=False,
        disable=not accelerator.is_main_process,
    ) as bar:
        mine = range(rank, num_episodes, ranks)
        played = evaluate(
            speaker(policy), pool, mine, seed, greedy, on_episode=lambda: bar.update(ranks)
        )
    everyone = dict(gather_object(list(played.items())))
    return [everyone[number] for number in sorted(everyone)]


def _draw(seed: int, number: int, step: int) -> float:
    return float(derive_rng(seed, "eval-sample", number, step).random())


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a success rate; (0, 1) for no trials."""
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def episode_rates(records: Sequence[EpisodeRecord]) -> dict[str, float | None]:
    """Means over finished episodes, ``None`` without any: return, length, success, stages."""

    def mean(values: Iterable[float]) -> float | None:
        return float(np.mean(list(values))) if records else None

    return {
        "episode_return": mean(r.episode_return for r in records),
        "episode_length": mean(len(r.actions) for r in records),
        "success_rate": mean(r.success for r in records),
        "reached_rate": mean(r.has_reached(Stage.REACHED) for r in records),
        "grasped_rate": mean(r.has_reached(Stage.GRASPED) for r in records),
        "lifted_rate": mean(r.has_reached(Stage.LIFTED) for r in records),
    }


def summarize(
    records: Sequence[EpisodeRecord], words: Sequence[str], **about: Any
) -> dict[str, Any]:
    """What an evaluation writes: rates, the interval, and each episode's seed and words.

    Args:
        records: The finished episodes, in order.
        words: The eight action words.
        about: Facts about the evaluation to put in front.
    """
    low, high = wilson_interval(sum(r.success for r in records), len(records))
    rates = episode_rates(records)
    mean_return, mean_length = rates.pop("episode_return"), rates.pop("episode_length")
    return {
        **about,
        "num_eval_episodes": len(records),
        **rates,
        "mean_return": mean_return,
        "mean_length": mean_length,
        "ci95_low": low,
        "ci95_high": high,
        "episodes": [
            {
                "seed": r.seed,
                "success": r.success,
                "stage": r.stage,
                "return": r.episode_return,
                "length": len(r.actions),
                "words": [words[a] for a in r.actions],
            }
            for r in records
        ],
    }


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
