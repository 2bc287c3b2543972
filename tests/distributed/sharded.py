"""One of some processes that share a policy, started by ``test_sharding.py``.

It improves a policy on parts of rollouts that all processes know whole, and writes what came of it.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from vlm_agent.bench.models import random_observations
from vlm_agent.bench.update import random_rollout
from vlm_agent.distributed.launch import check_accelerator, start_accelerator
from vlm_agent.distributed.learner import Learner
from vlm_agent.policy.building import build_policy
from vlm_agent.ppo.critic import ActorCritic
from vlm_agent.ppo.update import PPOUpdate
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer

SAMPLES = 12
"""Of a rollout, one of which teaches nothing: so processes learn from unequally many."""

FIRST, THEN = 3, 2
"""Updates before and after a checkpoint."""


def main(folder: Path, form: str, others: list[Path]) -> None:
    accelerator = start_accelerator([], str(folder))
    check_accelerator(accelerator)
    lora = {"use_peft": True, "lora_layers": 2}
    settings = lora if form == "lora" else {"freeze_vision": True}
    recipe = Recipe.load(
        batch_size=SAMPLES, n_epochs=1, micro_batch_size=5, value_epochs=1, frame_size=56,
        target_kl=None, critic_warmup_updates=1, **settings,
    )  # fmt: skip
    policy = build_policy(recipe.model, recipe.template, 0)
    learner = Learner(accelerator, ActorCritic(policy), make_optimizer, 0.5, 5)
    improve = PPOUpdate(recipe, learner)
    rank, ranks = accelerator.process_index, accelerator.num_processes

    def go_on(number: int, count: int, name: str) -> None:
        for update in range(number, number + count):
            improve(part(learner, update, rank, ranks), update, 1e-3)
        keep(learner, folder, name)

    go_on(0, FIRST, "first")
    go_on(FIRST, THEN, "then")
    take_up(learner, folder)
    go_on(FIRST, THEN, "again")
    for other in others:
        take_up(learner, other)
        go_on(FIRST, THEN, f"from_{other.name}")
    here = sum(map(held_here, learner.model.parameters()))
    whole = sum(p.numel() for p in learner.module.parameters())
    about = {"held": here / whole, "sharding": learner.sharding, "ranks": ranks}
    (folder / f"rank{rank}.json").write_text(json.dumps(about))


def make_optimizer(actor_critic: ActorCritic) -> torch.optim.Optimizer:
    """Two groups, as PPO's."""
    parts = actor_critic.policy.backbone_parameters(), actor_critic.head_parameters()
    groups = [{"params": part, "lr": rate} for part, rate in zip(parts, (1e-4, 1e-3), strict=True)]
    return torch.optim.AdamW(groups, eps=1e-5)


def part(learner: Learner, number: int, rank: int, ranks: int) -> RolloutBuffer:
    """What one process has of a rollout; the words were said by the policy as it is now."""
    observations = random_observations(SAMPLES, 56)
    observations = dataclasses.replace(observations, frames=observations.frames ^ number)
    whole = random_rollout(learner.module, observations, SAMPLES, 0.0)
    whole.said[0, -1] = False
    arrays = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
    mine = slice(rank, None, ranks)
    columns = {k: v[:, mine] for k, v in arrays.items() if isinstance(v, np.ndarray)}
    return dataclasses.replace(whole, observations=whole.observations[:, mine], **columns)


def keep(learner: Learner, folder: Path, name: str) -> None:
    optimizer = learner.optimizer_state()
    weights = {k: v.detach().clone() for k, v in learner.module.named_parameters()}
    digests = learner.accelerator.gather(torch.stack([w.double().sum() for w in weights.values()]))
    if learner.accelerator.is_main_process:
        copies = digests.reshape(learner.accelerator.num_processes, -1)
        assert (copies == copies[0]).all(), "ranks differ"
        save_file(weights, folder / f"{name}.safetensors")
        save_file(optimizer, folder / f"{name}_optimizer.safetensors")
    learner.accelerator.wait_for_everyone()


@torch.no_grad()
def take_up(learner: Learner, folder: Path) -> None:
    saved = load_file(folder / "first.safetensors")
    for name, parameter in learner.module.named_parameters():
        parameter.copy_(saved[name])
    learner.take_over()
    learner.load_optimizer_state(load_file(folder / "first_optimizer.safetensors"))


def held_here(parameter: torch.nn.Parameter) -> int:
    """Numbers of a parameter that this process has."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.numel()
    return getattr(parameter, "_local_tensor", parameter).numel()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [Path(other) for other in sys.argv[3:]])
