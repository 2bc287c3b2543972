"""Run by test_distributed.py in two processes: a short warm start, then what each rank knows."""

import hashlib
import json
import sys
from pathlib import Path


def main() -> None:
    from tests.worlds import ExpertPool, known, of
    from vlm_agent import ImitationTrainer
    from vlm_agent.recipe.command_line import load_recipe
    from vlm_agent.runs.begin import start_policy

    output = Path(sys.argv.pop(1))
    recipe = load_recipe()
    policy = start_policy(recipe)

    def digest(module) -> str:
        parameters = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
        return hashlib.sha256(parameters).hexdigest()

    before = digest(policy), digest(policy.value_head)
    trainer = ImitationTrainer(policy, of(ExpertPool(recipe.rollout.num_envs), recipe), recipe)
    trainer.train(known(40))
    report = {
        "before": before,
        "after": (digest(policy), digest(policy.value_head)),
        "words_learnt": trainer.timesteps,
        "evaluations": trainer.evaluations,
    }
    (output / f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
