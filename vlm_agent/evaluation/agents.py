"""Who can play: trained policies, the scripted expert, random words."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import Split, episode_seed
from vlm_agent.demonstrations.demonstrate import play_in_parallel
from vlm_agent.evaluation.evaluate import Evaluation, Speaker, play, speaker
from vlm_agent.evaluation.remote import OPENAI, PREFIX, RemoteModel
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import TINY
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import world_template
from vlm_agent.runs.checkpoints import load_policy
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.contract import WorldSpec
from vlm_agent.world.facts import INSTRUCTION
from vlm_agent.world.instructions import Instructions
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.pool import EnvPool
from vlm_agent.world.registry import declare

EXPERT = "expert"
RANDOM = "random"
ALIASES = {"oracle": EXPERT}
"""Names that agents had before."""

Ablation = Literal["none", "image", "instruction", "prompt"]

GREY = 128
"""What every pixel is for a policy that is not to see."""


@dataclasses.dataclass(frozen=True)
class Agent:
    """Someone who can be evaluated.

    Attributes:
        name: As it was asked for.
        env: The scene it plays in.
        gamma: Discount of its rewards.
        words: What the actions are called; ``None``: as the world calls them.
        facts: Names of the facts it reads; ``None`` for all but those told on request.
        speak: Chooses words; ``None`` for the expert, who has to be where the simulator is.
        ablate: What it is not told, see :func:`load_agent`.
        trained_in: The scene it was trained in; the usual one for who was not trained.
        policy: What speaks, if that is a model.
        draws: Whether it always needs uniform numbers.
        remote: The model behind a server that speaks, if it is one.
    """

    name: str
    env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    gamma: float = 0.99
    words: tuple[str, ...] | None = None
    facts: tuple[str, ...] | None = None
    speak: Speaker | None = None
    ablate: Ablation = "none"
    trained_in: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    policy: VLMPolicy | None = None
    draws: bool = False
    remote: RemoteModel | None = None


def load_agent(
    name: str,
    ablate: Ablation = "none",
    change: Callable[[EnvConfig], EnvConfig] = lambda env: env,
    trust_modules: bool = False,
    base_url: str | None = None,
) -> Agent:
    """The agent of that name.

    Args:
        name: ``expert``, ``random``, ``starter``, ``tiny`` (the starter's model as it was before it
            learnt), a policy's folder, its name on the hub, or ``openai:MODEL`` for a model behind
            an OpenAI-compatible server.
        ablate: What a policy is not to be told: the ``image`` (it is grey), the ``instruction``
            (it is another goal's), the ``prompt``'s facts (they stay those of an episode's
            beginning), or ``none``.
        change: From the world it was trained in to the one it is to play in.
        trust_modules: Whether to import the modules that the policy names.
        base_url: Of that server; by default what ``OPENAI_BASE_URL`` says, or OpenAI's own.

    Raises:
        UserError: There is no such policy, or it cannot play in that world.
    """
    name = ALIASES.get(name, name)
    if ablate != "none" and name in (EXPERT, RANDOM):
        raise UserError(f"--ablate {ablate}: {name!r} reads neither picture nor prompt")
    if name == EXPERT:
        return Agent(name, change(EnvConfig()))
    if name == RANDOM:
        env = change(EnvConfig())
        return Agent(name, env, speak=_random_words(len(declare(env).vocabulary)), draws=True)
    if name.startswith(PREFIX):
        return _remote(name, ablate, change(EnvConfig()), base_url)
    policy, trained_in, gamma = load_policy("starter" if name == TINY else name, trust_modules)
    env = change(trained_in)
    world = declare(env)
    template = template_for(policy.encoder.template, world)
    if len(policy.words) != len(world.vocabulary):
        raise UserError(
            f"words: the policy {name!r} has {len(policy.words)} words, and the world "
            f"{len(world.vocabulary)}"
        )
    if name == TINY:
        policy = build_policy(policy.config, template, policy.seed)
    elif template != policy.encoder.template:
        policy = VLMPolicy.from_pretrained(name, template=template)
    policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    speak = speaker(policy)
    if ablate != "none":
        speak = ablated(speak, ablate, template, world.instructions)
    return Agent(name, env, gamma, policy.words, policy.facts, speak, ablate, trained_in, policy)


def _remote(name: str, ablate: Ablation, env: EnvConfig, base_url: str | None) -> Agent:
    """A model behind a server, with the world's usual prompt."""
    template = world_template(env)
    url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
    model = RemoteModel(name.removeprefix(PREFIX), url, template)
    speak: Speaker = model
    if ablate != "none":
        speak = ablated(model, ablate, template, declare(env).instructions)
    facts, words = template.fact_names, template.words
    return Agent(
        name, env, words=words, facts=facts, speak=speak, ablate=ablate, draws=True, remote=model
    )


def template_for(template: PromptTemplate, world: WorldSpec) -> PromptTemplate:
    """A policy's prompt in another world; its task is told with that world's sentences.

    Where both tell a task with one sentence alone, the policy keeps its own.

    Args:
        template: The policy's.
        world: What the world declares.
    """
    asked = [fact for fact in world.facts if fact.name == INSTRUCTION]
    if [fact for fact in template.facts if fact.name == INSTRUCTION] == asked:
        return template
    others = [fact for fact in template.facts if fact.name != INSTRUCTION]
    sentence = world.instructions.sentences[0]
    return dataclasses.replace(template, facts=(*others, *asked), task=sentence)


def _random_words(count: int) -> Speaker:
    def choose(_: Observations, uniforms: np.ndarray | None) -> np.ndarray:
        assert uniforms is not None, "random words are drawn, whatever is asked for"
        return (uniforms * count).astype(np.int64)

    return choose


def ablated(
    speak: Speaker,
    ablate: Ablation,
    template: PromptTemplate,
    instructions: Instructions | None = None,
) -> Speaker:
    """Someone who speaks as before, but is not told something.

    Args:
        speak: Who.
        ablate: What, see :func:`load_agent`.
        template: The prompt; says where an episode begins.
        instructions: The sentences it may tell.

    Raises:
        UserError: There is nothing to tell otherwise.
    """
    names = template.fact_names
    if ablate == "instruction":
        if instructions is None or len(instructions.goals) < 2 or INSTRUCTION not in names:
            raise UserError("--ablate instruction: this world has one goal alone")
        others = np.array(instructions.of_other_goals())

    def choose(observations: Observations, uniforms: np.ndarray | None) -> np.ndarray:
        frames, facts = observations.frames, observations.facts.copy()
        if ablate == "image":
            frames = np.full_like(frames, GREY)
        elif ablate == "instruction":
            told = names.index(INSTRUCTION)
            facts[:, told] = others[facts[:, told]]
        else:
            step, words_left = names.index("step"), names.index("words_left")
            horizon = facts[:, step] + facts[:, words_left]
            facts = np.tile(np.array(template.start_facts, facts.dtype), (len(facts), 1))
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
        greedy = greedy and not agent.draws
        at_once = min(num_envs, count)
        with EnvPool(agent.env, at_once, gamma=agent.gamma, facts=agent.facts) as pool:
            done = play(agent.speak, pool, range(count), seed, greedy, split, on_episode)
        episodes = [done[number] for number in sorted(done)]
    about: dict[str, Any] = {"policy": agent.name, "task": agent.env.name, "split": split}
    about |= {"ablate": agent.ablate}
    if agent.remote is not None:
        about |= {"asked": agent.remote.asked, "unparseable": agent.remote.unparseable}
    mode = {"greedy": greedy, "seed": seed, "env": dataclasses.asdict(agent.env)}
    world = declare(agent.env)
    words = world.vocabulary.words if agent.words is None else agent.words
    return Evaluation(tuple(episodes), words, {**about, **mode}, world.stages)
