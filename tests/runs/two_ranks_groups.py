"""Run by test_distributed.py in two processes, whose episodes have different lengths."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from tests.worlds import UnequalPool, of
from vlm_agent import PPOTrainer
from vlm_agent.policy.decisions import evaluate_actions
from vlm_agent.ppo.groups import group_advantages
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.runs.begin import Run, start_policy


def gradient_by_hand(trainer: PPOTrainer, rollout) -> torch.Tensor:
    """Of the mean over the words of all processes, without the wrapper that averages."""
    ppo = trainer.ppo
    told = group_advantages(rollout.rewards, rollout.ended, rollout.valid, ppo.group_size)
    chosen = np.nonzero(rollout.valid)
    inputs = trainer.policy.encode(rollout.observations[chosen])
    actions = torch.from_numpy(rollout.actions[chosen])
    log_probs = evaluate_actions(trainer.policy, inputs, actions)[0]
    total = -(log_probs * torch.from_numpy(told.advantages[chosen]).float()).sum()
    learning = [p for p in trainer.policy.parameters() if p.requires_grad]
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(total, learning)])
    everyone = torch.cat([gradient, torch.tensor([float(len(actions))])])
    torch.distributed.all_reduce(everyone)
    return everyone[:-1] / everyone[-1]


def error_of_first_gradient(trainer: PPOTrainer) -> tuple[float, int]:
    """How far an update's first gradient is from the one by hand; and this process's words."""
    learning = [p for p in trainer.policy.parameters() if p.requires_grad]
    taken: list[torch.Tensor] = []
    trainer.learner.optimizer.optimizer.register_step_pre_hook(
        lambda *_: taken.append(torch.cat([p.grad.clone().flatten() for p in learning]))
    )
    rollout, _ = trainer.collect()
    wanted = gradient_by_hand(trainer, rollout)
    trainer.update(rollout)
    return float((taken[0] - wanted).abs().max() / wanted.abs().max()), int(rollout.valid.sum())


def main() -> None:
    output = Path(sys.argv.pop(1))
    recipe = load_recipe()
    run = Run(recipe)
    pool = of(UnequalPool(recipe.rollout.num_envs), recipe)
    trainer = PPOTrainer(start_policy(recipe), pool, recipe, run=run)
    trainer.train()
    weights = b"".join(p.detach().numpy().tobytes() for p in trainer.actor_critic.parameters())
    whole = dataclasses.replace(
        recipe,
        run=dataclasses.replace(recipe.run, run_name="whole"),
        ppo=dataclasses.replace(recipe.ppo, batch_size=999, n_epochs=1, max_grad_norm=1e9),
    )
    error, words = error_of_first_gradient(PPOTrainer(start_policy(whole), pool, whole))
    report = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "timesteps": trainer.timesteps,
        "error": error,
        "words": words,
    }
    rank = run.accelerator.process_index
    (output / f"rank{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
