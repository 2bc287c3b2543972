"""What an update costs: four epochs of LoRA with a frozen vision tower, ours against the naive way.

Each contender runs in a process of its own, so that its peak memory is its own too.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from vlm_agent.bench.models import (
    FRAME_SIZES,
    benchmark_encoder,
    benchmark_model,
    benchmark_policy,
    gpu_figures,
    random_observations,
)
from vlm_agent.distributed.learner import Learner
from vlm_agent.policy.decisions import PolicyOutput, act
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.critic import ActorCritic
from vlm_agent.ppo.update import PPOUpdate
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.world.observations import Observations


@dataclass(frozen=True)
class Contender:
    """A way to update.

    Attributes:
        top: Whether only a third of the layers, or the top eight of more, have adapters.
        shares: Whether what prompts begin with is computed once.
        keeps: Whether image features are kept from the rollout.
        has_trunk: Whether what leaves the layers below the adapters is kept instead.
        is_naive: Whether the whole vocabulary is scored at all positions.
    """

    top: bool = False
    shares: bool = True
    keeps: bool = True
    has_trunk: bool = True
    is_naive: bool = False


CONTENDERS = {
    "ours": Contender(),
    "whole_prompts": Contender(shares=False),
    "without_cache": Contender(keeps=False),
    "naive": Contender(shares=False, keeps=False, is_naive=True),
    "top": Contender(top=True),
    "top_recomputed": Contender(top=True, has_trunk=False),
}


class Run(NamedTuple):
    """One contender's run.

    Attributes:
        seconds: Of the update.
        peak_bytes: Of the process, or of the GPU's memory.
        ratio_error: Of the first minibatch: that all contenders score alike.
        gpu: What only a GPU tells.
    """

    seconds: float
    peak_bytes: int
    ratio_error: float
    gpu: dict[str, Any]


def measure(
    arch: str,
    device: str,
    vocabulary: int,
    batch_size: int,
    frame_size: int,
    rounds: int,
    samples: int,
    run: Callable[..., Run] | None = None,
) -> dict[str, Any]:
    """Ratios of median times and memories; ``run`` is :func:`run_apart` by default."""
    run = run or run_apart
    runs: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
    settings = (arch, device, vocabulary, batch_size, frame_size or FRAME_SIZES[arch], samples)
    with tqdm(total=rounds * len(CONTENDERS), desc="updates") as bar:
        for _ in range(rounds):
            for name in CONTENDERS:
                runs[name].append(run(name, *settings))
                bar.update()
    seconds = {name: statistics.median(run.seconds for run in runs[name]) for name in runs}
    memory = {name: statistics.median(run.peak_bytes for run in runs[name]) for name in runs}
    return {
        "speedup_vs_naive": seconds["naive"] / seconds["ours"],
        "speedup_vs_recomputed_vision": seconds["without_cache"] / seconds["ours"],
        "speedup_prefix": seconds["whole_prompts"] / seconds["ours"],
        "speedup_trunk": seconds["top_recomputed"] / seconds["top"],
        "speedup_both": seconds["whole_prompts"] / seconds["top"],
        "peak_memory_ratio": memory["ours"] / memory["naive"],
        "peak_memory_ratio_both": memory["top"] / memory["whole_prompts"],
        **{f"{name}_peak_memory_gib": value / 2**30 for name, value in memory.items()},
        "largest_ratio_error": max(run.ratio_error for name in runs for run in runs[name]),
        **differences(arch, device, vocabulary, batch_size, settings[4]),
        "samples_per_s": Recipe.load().ppo.n_epochs * samples / seconds["ours"],
        **runs["ours"][0].gpu,
    }


def differences(
    arch: str, device: str, vocabulary: int, batch_size: int, frame_size: int
) -> dict[str, float]:
    """How far scores and gradients are from those of whole prompts through all layers, relative."""
    policy = _policy(CONTENDERS["top"], arch, device, vocabulary)
    torch.manual_seed(0)
    for name, parameter in policy.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)  # a fresh adapter adds nothing
    observations = random_observations(batch_size, frame_size)
    with torch.no_grad():
        kept = policy(**policy.encode(observations)).kept
    assert kept is not None
    ours = _scores_and_gradient(policy, policy.encode(observations, kept.rows()))
    policy.model_pass.trunk_depth = 0
    policy.rows.shares = False
    plain = _scores_and_gradient(policy, policy.encode(observations))
    score, gradient = ((a - b).norm() / b.norm() for a, b in zip(ours, plain, strict=True))
    return {"max_score_diff": float(score), "max_gradient_diff": float(gradient)}


def _scores_and_gradient(
    policy: VLMPolicy, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (B, A), and the gradient of the first word's."""
    policy.zero_grad()
    log_probs_BA = policy(**inputs).logits.log_softmax(-1)
    log_probs_BA[:, 0].mean().backward()
    gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return log_probs_BA.detach(), torch.cat(gradients)


def run_apart(*arguments: Any) -> Run:
    """:func:`run_alone` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(run_alone, arguments)


class NaivePolicy(VLMPolicy):
    """Scores words as a language model is usually asked: all positions, the whole vocabulary."""

    def forward(self, **inputs: torch.Tensor) -> PolicyOutput:
        """The same scores and values, at more cost."""
        del inputs["prefix_ids"]
        output = self.inner_model(**inputs, use_cache=False, output_hidden_states=True)
        log_probs_BLV = output.logits.float().log_softmax(-1)
        words = [ids[0] for ids in self.encoder.words.tokens]
        ends_BD = output.hidden_states[-1][:, -1]
        return PolicyOutput(log_probs_BLV[:, -1, words], self.value_head(ends_BD), None, ends_BD)


def run_alone(
    name: str,
    arch: str,
    device: str,
    vocabulary: int,
    batch_size: int,
    frame_size: int,
    samples: int,
) -> Run:
    """Collect a rollout and improve a policy on it as a contender does."""
    contender = CONTENDERS[name]
    policy = _policy(contender, arch, device, vocabulary)
    observations = random_observations(samples, frame_size)
    kept_bytes = 1e12 if contender.keeps else 0.0
    rollout = random_rollout(policy, observations, batch_size, kept_bytes)
    if contender.is_naive:
        policy.__class__ = NaivePolicy
        policy.model_pass.vision_is_frozen = False  # as far as the update knows: it gets pictures
    recipe = Recipe.load(batch_size=batch_size, num_envs=samples, rollout_steps=1)
    accelerator = Accelerator(cpu=device == "cpu")
    improve = PPOUpdate(recipe, benchmark_learner(accelerator, policy, recipe))
    began = time.perf_counter()
    error = improve(rollout, 1, 1e-4)["first_ratio_error"]  # reading it waits for the device
    seconds = time.perf_counter() - began
    if device == "cpu":
        return Run(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, error, {})
    gpu = gpu_figures(lambda: improve(rollout, 2, 1e-4), seconds)
    return Run(seconds, torch.cuda.max_memory_allocated(), error, gpu)


def benchmark_learner(accelerator: Accelerator, policy: VLMPolicy, recipe: Recipe) -> Learner:
    """What learns in a benchmark."""

    def make_optimizer(actor_critic: ActorCritic) -> torch.optim.Optimizer:
        trained = [p for p in actor_critic.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, 1e-4, eps=1e-5)  # as PPO's

    ppo = recipe.ppo
    module = ActorCritic(policy)
    return Learner(accelerator, module, make_optimizer, ppo.max_grad_norm, ppo.micro_batch_size)


def _policy(contender: Contender, arch: str, device: str, vocabulary: int) -> VLMPolicy:
    """A policy with adapters as a contender has them."""
    encoder = benchmark_encoder()
    model = benchmark_model(arch, vocabulary, device, encoder)
    depth = model.config.get_text_config().num_hidden_layers
    layers = min(8, depth // 3) if contender.top else None
    policy = benchmark_policy(model, encoder, use_peft=True, lora_layers=layers)
    if not contender.has_trunk:
        policy.model_pass.trunk_depth = 0
    policy.rows.shares = contender.shares
    return policy


def random_rollout(
    policy: VLMPolicy, observations: Observations, batch_size: int, feature_bytes: float
) -> RolloutBuffer:
    """One word for each observation, with random rewards.

    Args:
        policy: Speaks.
        observations: B of them, each in an environment of its own.
        batch_size: How many it speaks about at once.
        feature_bytes: How much memory what frozen parts made may take.
    """
    buffer = RolloutBuffer.empty(1, observations, feature_bytes)
    buffer.observations.frames[0] = observations.frames
    buffer.observations.facts[0] = observations.facts
    rng = np.random.default_rng(0)
    for slots in np.array_split(np.arange(len(observations)), -(-len(observations) // batch_size)):
        said = act(policy, observations[slots], rng.random(len(slots)))
        buffer.actions[0, slots] = said.actions
        buffer.log_probs[0, slots] = said.log_probs
        if said.kept is not None:
            buffer.features.put(slots, said.kept)
    buffer.rewards[0] = rng.normal(size=len(observations))
    return buffer
