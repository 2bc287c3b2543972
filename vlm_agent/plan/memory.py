"""How much memory a recipe's process needs, by what holds it."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_agent.plan.costs import BYTES
from vlm_agent.plan.machine import GPU_PROGRAM_BYTES, Machine
from vlm_agent.plan.sizes import Sizes
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.world.robosuite.names import scene_name

FOUR_BITS = 0.5 + 4 / 64
"""Bytes of a weight of 4 bits, with the scale of its block of 64."""

EIGHT_BITS = 1.0


@dataclass(frozen=True)
class Memory:
    """Bytes of one process in one stage.

    Attributes:
        model: By kind, where the model is: on the GPU, or in the host's memory.
        host: By kind, in the host's memory, besides.
    """

    model: dict[str, float]
    host: dict[str, float]


def memory_of(recipe: Recipe, sizes: Sizes, machine: Machine, moments: int) -> Memory:
    """What a stage needs.

    Args:
        recipe: Its recipe.
        sizes: Of its model and prompts.
        machine: Where.
        moments: That a warm start knows at its end; 0: the stage is PPO.
    """
    beside = sizes.trained * 4 if recipe.model.use_peft else 0
    model = {
        "weights": _weights(recipe, sizes),
        "adapters": beside,
        "gradients": sizes.trained * 4,
        "optimiser": sizes.trained * 8,
        "activations": _activations(recipe, sizes, machine, bool(moments)),
    }
    if recipe.ppo.kl_coef and not moments:
        model["reference"] = sizes.trained * 4
    if machine.gpu is not None:
        model["CUDA"] = GPU_PROGRAM_BYTES
    return Memory(
        {kind: float(size) for kind, size in model.items()},
        {
            "program": machine.constants["program_bytes"],
            "simulator": _simulator(recipe, machine),
            **_observations(recipe, sizes, moments),
        },
    )


def _weights(recipe: Recipe, sizes: Sizes) -> float:
    """Of the backbone; what is trained beside adapters is counted with them."""
    model, language = recipe.model, sizes.layer * sizes.layers
    whole = sizes.vision + sizes.embedding
    if model.load_in_4bit:
        return language * FOUR_BITS + 2 * whole
    if model.load_in_8bit:
        return language * EIGHT_BITS + 2 * whole
    return (language + whole) * BYTES[model.dtype]


def _activations(recipe: Recipe, sizes: Sizes, machine: Machine, is_warm_start: bool) -> float:
    """What the backward pass of a micro-batch needs of the forward pass."""
    model = recipe.model
    batch = recipe.imitation.sft_batch_size if is_warm_start else recipe.ppo.batch_size
    rows = min(batch, recipe.ppo.micro_batch_size or batch)
    tokens, above = sizes.prefix + rows * sizes.rest, sizes.layers - sizes.trunk
    layer = tokens * (10 * sizes.hidden + 4 * sizes.intermediate)
    seen = 0.0
    if sizes.vision_is_trained:
        seen = rows * sizes.patches * 26.0 * sizes.vision_hidden * sizes.vision_layers
    kept = layer * above
    if model.gradient_checkpointing:
        kept = layer + tokens * sizes.hidden * above
    share = machine.constants["activations_share"]
    return share * (kept * BYTES[model.dtype] + seen * 4)


def _simulator(recipe: Recipe, machine: Machine) -> float:
    """Of the processes that run the environments."""
    rollout = recipe.rollout
    workers = rollout.num_workers or max(1, machine.cores // machine.on_node)
    pixels = 3 * recipe.env.frame_size**2
    env = recipe.env
    simulations = 1 if env.env else len({scene_name(task) for task in env.tasks or [env.task]})
    each = simulations * machine.constants["env_bytes"] + pixels
    count = min(workers, rollout.num_envs)
    return count * machine.constants["worker_bytes"] + rollout.num_envs * each


def _observations(recipe: Recipe, sizes: Sizes, moments: int) -> dict[str, float]:
    """Frames of a rollout, of demonstrations, and what is kept of them."""
    height, width, channels = recipe.env.frame_shape
    frame = height * width * channels
    if moments:
        return {"demonstrations": float(moments * frame)}
    words = recipe.rollout.num_envs * recipe.rollout.rollout_steps
    kept = kept_share(recipe, sizes) * words * _kept(recipe, sizes)
    return {"frames": float(words * frame), "caches": kept}


def kept_share(recipe: Recipe, sizes: Sizes) -> float:
    """Of a rollout's words, those of which there is room for what frozen parts made of them."""
    if sizes.vision_is_trained:
        return 0.0
    words = recipe.rollout.num_envs * recipe.rollout.rollout_steps
    return min(1.0, recipe.rollout.feature_cache_gb * 2**30 / (words * _kept(recipe, sizes)))


def _kept(recipe: Recipe, sizes: Sizes) -> float:
    """Bytes that are kept of a word: image features, or states that leave the trunk."""
    tokens = sizes.rest if sizes.trunk else sizes.picture
    return tokens * sizes.hidden * BYTES[recipe.model.dtype]
