"""Who can play: trained policies, the scripted expert, random words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import Split, episode_seed
from vlm_agent.demonstrations.demonstrate import play_in_parallel
from vlm_agent.evaluation.evaluate import Evaluation, Speaker, play, speaker
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import TINY
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.runs.checkpoints import load_policy
from vlm_agent.world.actions import DEFAULT_WORDS, MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.facts import FACTS
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.pool import EnvPool

EXPERT = "expert"
RANDOM = "random"
ALIASES = {"oracle": EXPERT}
"""Names that agents had before."""

Ablation = Literal["none", "image", "prompt"]

GREY = 128
"""What every pixel is for a policy that is not to see."""


@dataclasses.dataclass(frozen=True)
class Agent:
    """Someone who can be evaluated.

    Attributes:
        name: As it was asked for.
        env: The scene it was trained in.
        gamma: Discount of its rewards.
        words: What the actions are called.
        facts: Names of the facts it reads.
        speak: Chooses words; ``None`` for the expert, who has to be where the simulator is.
        ablate: What it is not told, see :func:`load_agent`.
    """

    name: str
    env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    gamma: float = 0.99
    words: tuple[str, ...] = DEFAULT_WORDS
    facts: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(FACTS))
    speak: Speaker | None = None
    ablate: Ablation = "none"


def load_agent(name: str, ablate: Ablation = "none") -> Agent:
    """The agent of that name.

    Args:
        name: ``expert``, ``random``, ``starter``, ``tiny`` (the starter's model as it was before it
            learnt), a policy's folder, or its name on the hub.
        ablate: What a policy is not to be told: the ``image`` (it is grey), the ``prompt``'s facts
            (they stay those of an episode's beginning), or ``none``.

    Raises:
        UserError: There is no such policy.
    """
    name = ALIASES.get(name, name)
    if ablate != "none" and name in (EXPERT, RANDOM):
        raise UserError(f"--ablate {ablate}: {name!r} reads neither picture nor prompt")
    if name == EXPERT:
        return Agent(name)
    if name == RANDOM:
        return Agent(name, speak=_random_words)
    policy, env, gamma = load_policy("starter" if name == TINY else name)
    if name == TINY:
        policy = build_policy(policy.config, policy.encoder.template, policy.seed)
    policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    speak = speaker(policy)
    if ablate != "none":
        speak = ablated(speak, ablate, policy.encoder.template)
    return Agent(name, env, gamma, policy.words, policy.facts, speak, ablate)


def _random_words(observations: Observations, uniforms: np.ndarray | None) -> np.ndarray:
    assert uniforms is not None, "random words are drawn, whatever is asked for"
    return (uniforms * len(MOTIONS)).astype(np.int64)


def ablated(speak: Speaker, ablate: Ablation, template: PromptTemplate) -> Speaker:
    """Someone who speaks as before, but is not told something.

    Args:
        speak: Who.
        ablate: What, see :func:`load_agent`.
        template: The prompt; says where an episode begins.
    """
    start, names = template.start_facts, template.fact_names
    step, words_left = names.index("step"), names.index("words_left")

    def choose(observations: Observations, uniforms: np.ndarray | None) -> np.ndarray:
        frames, facts = observations.frames, observations.facts
        if ablate == "image":
            frames = np.full_like(frames, GREY)
        else:
            horizon = facts[:, step] + facts[:, words_left]
            facts = np.tile(np.array(start, facts.dtype), (len(facts), 1))
            facts[:, words_left] = horizon
        return speak(Observations(frames, facts), uniforms)

    return choose


def measure(
    agent: Agent,
    count: int,
    seed: int,
    greedy: bool,
    split: Split,
    num_envs: int = 4,
    on_episode: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Play ``count`` episodes.

    Args:
        agent: Who plays, and in which scene.
        count: How many episodes.
        seed: The evaluation's seed.
        greedy: Take the most probable word; random words are always drawn.
        split: Whose episodes.
        num_envs: How many are played at once.
        on_episode: Called after each episode.
    """
    if agent.speak is None:
        seeds = [episode_seed(split, seed, number) for number in range(count)]
        episodes = []
        for played in play_in_parallel(agent.env, seeds):
            episodes.append(played.episode)
            on_episode()
    else:
        greedy = greedy and agent.name != RANDOM
        at_once = min(num_envs, count)
        with EnvPool(agent.env, at_once, gamma=agent.gamma, facts=agent.facts) as pool:
            done = play(agent.speak, pool, range(count), seed, greedy, split, on_episode)
        episodes = [done[number] for number in sorted(done)]
    about = {"policy": agent.name, "task": agent.env.task, "split": split}
    about |= {"ablate": agent.ablate}
    mode = {"greedy": greedy, "seed": seed, "env": dataclasses.asdict(agent.env)}
    return Evaluation(tuple(episodes), agent.words, {**about, **mode})
