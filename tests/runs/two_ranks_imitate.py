"""Run by test_distributed.py in two processes: a short warm start, then what each rank knows."""

import hashlib
import json
import sys
from pathlib import Path


def main() -> None:
    from tests.worlds import ExpertPool, known
    from vlm_agent.imitation import trainer as imitation
    from vlm_agent.policy.building import build_policy
    from vlm_agent.recipe.command_line import load_recipe
    from vlm_agent.runs.folders import RunFolders
    from vlm_agent.runs.launch import start_accelerator

    output = Path(sys.argv.pop(1))
    recipe = load_recipe()
    accelerator = start_accelerator([], str(output))
    policy = build_policy(recipe.model, recipe.template, recipe.run.seed, recipe.to_dict())
    if accelerator.is_main_process:
        RunFolders(recipe).prepare(recipe)
    accelerator.wait_for_everyone()
    imitation.read_demonstrations = lambda recipe: known(40)

    def digest(module) -> str:
        parameters = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
        return hashlib.sha256(parameters).hexdigest()

    before = digest(policy), digest(policy.value_head)
    trainer = imitation.ImitationTrainer(
        recipe, accelerator, policy, ExpertPool(recipe.rollout.num_envs)
    )
    trainer.train()
    report = {
        "before": before,
        "after": (digest(policy), digest(policy.value_head)),
        "words_learnt": trainer.words_learnt,
        "evaluations": trainer.evaluator.history,
    }
    (output / f"rank{accelerator.process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
