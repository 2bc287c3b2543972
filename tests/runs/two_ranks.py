"""Run by test_distributed.py in two processes: a short real run, then what each rank knows."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    from vlm_agent.policy.building import build_policy
    from vlm_agent.ppo.trainer import PPOTrainer
    from vlm_agent.recipe.command_line import load_recipe
    from vlm_agent.runs.distributed import normalize_over_ranks
    from vlm_agent.runs.folders import RunFolders
    from vlm_agent.runs.launch import start_accelerator
    from vlm_agent.world.pool.pool import EnvPool

    output = Path(sys.argv.pop(1))
    recipe = load_recipe()
    accelerator = start_accelerator([], str(output))
    policy = build_policy(recipe.model, recipe.template, recipe.run.seed, recipe.to_dict())
    rank = accelerator.process_index
    if accelerator.is_main_process:
        RunFolders(recipe).prepare(recipe)
    accelerator.wait_for_everyone()

    def digest() -> str:
        parameters = b"".join(p.detach().numpy().tobytes() for p in policy.parameters())
        return hashlib.sha256(parameters).hexdigest()

    before = digest()
    with EnvPool(recipe.env, recipe.rollout.num_envs, 1, recipe.ppo.gamma) as pool:
        trainer = PPOTrainer(recipe, accelerator, policy, pool)
        trainer.train()
        mine = np.arange(4.0) + 10 * rank
        everyone = np.concatenate([np.arange(4.0), np.arange(4.0) + 10])
        normal = normalize_over_ranks(mine)
        expected = (mine - everyone.mean()) / everyone.std()
    report = {
        "before": before,
        "after": digest(),
        "seeds": [record.seed for record in trainer.collector.running],
        "words": [record.actions for record in trainer.collector.running],
        "timesteps": trainer.timesteps,
        "normal_error": float(np.abs(normal - expected).max()),
    }
    (output / f"rank{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
