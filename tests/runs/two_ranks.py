"""Run by test_distributed.py in two processes: a short real run, then what each rank knows."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np


def error_of_micro_batches(recipe, pool) -> float:
    """How far the first gradient of an update is from that of one in parts, in all ranks."""
    from vlm_agent import PPOTrainer
    from vlm_agent.runs.begin import start_policy

    gradients: list[list] = []
    rollout = None
    for size in (None, 3):
        run = dataclasses.replace(recipe.run, run_name=f"micro_{size}")
        ppo = dataclasses.replace(recipe.ppo, micro_batch_size=size, kl_coef=0.0)
        changed = dataclasses.replace(recipe, run=run, ppo=ppo)
        trainer = PPOTrainer(start_policy(changed), pool, changed)
        taken: list = []
        trainer.learner.optimizer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, taken=taken: taken.extend(
                p.grad.clone() for g in optimizer.param_groups for p in g["params"]
            )
        )
        rollout = rollout or trainer.collect()[0]
        trainer.update(rollout)
        gradients.append(taken[: len(taken) // 4])  # of the first of four steps
    return max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))


def critic_after_drifting_apart(trainer) -> list[float]:
    """The critic's last weights after passes of its own, to which each rank came with others."""
    import torch

    from vlm_agent.ppo.critic import fit_critic
    from vlm_agent.rollout.samples import Samples

    rank = trainer.accelerator.process_index
    rollout, _ = trainer.collect()
    weight = trainer.actor_critic.critic.output.weight
    with torch.no_grad():
        weight.add_(0.1 * rank)
    samples = Samples(trainer.actor_critic, rollout, trainer.accelerator.autocast)
    how = {"recipe": trainer.recipe, "epochs": 1, "learning_rate": 1e-3}
    fit_critic(trainer.actor_critic, trainer.accelerator, samples, rollout.rewards, **how)
    return weight.flatten().tolist()


def main() -> None:
    from vlm_agent import PPOTrainer, evaluate
    from vlm_agent.distributed.reductions import normalize_over_ranks
    from vlm_agent.recipe.command_line import load_recipe
    from vlm_agent.runs.begin import Run, start_policy

    output = Path(sys.argv.pop(1))
    recipe = load_recipe()
    run, policy = Run(recipe), start_policy(recipe)
    rank = run.accelerator.process_index
    with recipe.make_pool() as pool:
        trainer = PPOTrainer(policy, pool, recipe, run=run)

        def digest() -> str:
            parameters = trainer.actor_critic.parameters()
            weights = b"".join(p.detach().numpy().tobytes() for p in parameters)
            return hashlib.sha256(weights).hexdigest()

        before = digest()
        trainer.train()
        after, timesteps = digest(), trainer.timesteps
        asked = pool.requests
        evaluated = evaluate(policy, pool, num_episodes=3, split="test")
        asked = pool.requests - asked
        mine = np.arange(4.0) + 10 * rank
        everyone = np.concatenate([np.arange(4.0), np.arange(4.0) + 10])
        normal = normalize_over_ranks(mine)
        expected = (mine - everyone.mean()) / everyone.std()
        micro_error = error_of_micro_batches(recipe, pool)
        critic = critic_after_drifting_apart(trainer)
    report = {
        "critic": critic,
        "micro_error": micro_error,
        "asked": asked,
        "before": before,
        "after": after,
        "seeds": [episode.seed for episode in trainer.collector.running],
        "words": [episode.actions for episode in trainer.collector.running],
        "timesteps": timesteps,
        "normal_error": float(np.abs(normal - expected).max()),
        "evaluated": [dataclasses.asdict(episode) for episode in evaluated.episodes],
    }
    (output / f"rank{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
