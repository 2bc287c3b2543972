"""Who can play: trained policies, the scripted expert, random words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import Split, episode_seed
from vlm_agent.demonstrations.dataset import play_in_parallel
from vlm_agent.evaluation.evaluate import Speaker, evaluate, speaker, summarize
from vlm_agent.policy.artifact import named_policy
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import TINY
from vlm_agent.policy.inputs.encoder import START_FACTS
from vlm_agent.rollout.collector import EpisodeRecord
from vlm_agent.runs.checkpoints import load_policy
from vlm_agent.world.actions import DEFAULT_WORDS, MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.observations import FACTS, Observations
from vlm_agent.world.pool.pool import EnvPool

ORACLE = "oracle"
RANDOM = "random"

Ablation = Literal["none", "image", "prompt"]

STEP, WORDS_LEFT = FACTS.index("step"), FACTS.index("words_left")

GREY = 128
"""What every pixel is for a policy that is not to see."""


@dataclasses.dataclass(frozen=True)
class Player:
    """Someone who can be evaluated.

    Attributes:
        name: As it was asked for.
        env: The scene it was trained in.
        gamma: Discount of its rewards.
        words: What the eight actions are called.
        speak: Chooses words; ``None`` for the expert, who has to be where the simulator is.
        ablate: What it is not told, see :func:`load_player`.
    """

    name: str
    env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    gamma: float = 0.99
    words: tuple[str, ...] = DEFAULT_WORDS
    speak: Speaker | None = None
    ablate: Ablation = "none"


def load_player(name: str, ablate: Ablation = "none") -> Player:
    """The player of that name.

    Args:
        name: ``oracle``, ``random``, ``starter``, ``tiny`` (the starter's model as it was before it
            learnt), a policy's folder, or its name on the hub.
        ablate: What a policy is not to be told: the ``image`` (it is grey), the ``prompt``'s facts
            (they stay those of an episode's beginning), or ``none``.

    Raises:
        UserError: There is no such policy.
    """
    if ablate != "none" and name in (ORACLE, RANDOM):
        raise UserError(f"--ablate {ablate}: {name!r} reads neither picture nor prompt")
    if name == ORACLE:
        return Player(name)
    if name == RANDOM:
        return Player(name, speak=_random_words)
    policy, env, gamma = load_policy(named_policy("starter" if name == TINY else name))
    if name == TINY:
        policy = build_policy(policy.config, policy.encoder.template, policy.seed)
    policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    speak = speaker(policy)
    if ablate != "none":
        speak = _ablated(speak, ablate)
    return Player(name, env, gamma, policy.words, speak, ablate)


def _random_words(observations: Observations, uniforms: np.ndarray | None) -> np.ndarray:
    assert uniforms is not None, "random words are drawn, whatever is asked for"
    return (uniforms * len(MOTIONS)).astype(np.int64)


def _ablated(speak: Speaker, ablate: Ablation) -> Speaker:
    def choose(observations: Observations, uniforms: np.ndarray | None) -> np.ndarray:
        frames, facts = observations.frames, observations.facts
        if ablate == "image":
            frames = np.full_like(frames, GREY)
        else:
            horizon = facts[:, STEP] + facts[:, WORDS_LEFT]
            facts = np.tile(np.array(START_FACTS, facts.dtype), (len(facts), 1))
            facts[:, WORDS_LEFT] = horizon
        return speak(Observations(frames, facts), uniforms)

    return choose


def measure(
    player: Player,
    count: int,
    seed: int,
    greedy: bool,
    split: Split,
    num_envs: int = 4,
    on_episode: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Play ``count`` episodes and sum them up, as :func:`vlm_agent.evaluation.evaluate.summarize`.

    Args:
        player: Who plays, and in which scene.
        count: How many episodes.
        seed: The evaluation's seed.
        greedy: Take the most probable word; random words are always drawn.
        split: Whose episodes.
        num_envs: How many are played at once.
        on_episode: Called after each episode.
    """
    if player.speak is None:
        seeds = [episode_seed(split, seed, number) for number in range(count)]
        records = []
        for played in play_in_parallel(player.env, seeds):
            said = list(played.episode.actions)
            outcome = played.episode_return, played.success, played.stage
            records.append(EpisodeRecord(played.episode.seed, said, *outcome))
            on_episode()
    else:
        greedy = greedy and player.name != RANDOM
        with EnvPool(player.env, min(num_envs, count), gamma=player.gamma) as pool:
            done = evaluate(player.speak, pool, range(count), seed, greedy, split, on_episode)
        records = [done[number] for number in sorted(done)]
    about = {"policy": player.name, "task": player.env.task, "split": split}
    about |= {"ablate": player.ablate}
    mode = {"greedy": greedy, "seed": seed, "env": dataclasses.asdict(player.env)}
    return summarize(records, player.words, **about, **mode)
