"""The evaluations of a run: the same validation episodes each time."""

from __future__ import annotations

import dataclasses
import json

from tqdm import tqdm

from vlm_agent.common.whole import write_whole
from vlm_agent.evaluation.evaluate import Evaluation, evaluate
from vlm_agent.runs.trainer import Trainer


def validate(trainer: Trainer) -> Evaluation:
    """Play the recipe's validation episodes with a trainer's policy, and keep what came of it.

    The rates go to ``trainer.evaluations``, every episode's seed and words into the run's folder,
    and callbacks are told.
    """
    recipe, accelerator = trainer.recipe, trainer.accelerator
    how = recipe.evaluation
    trainer.run.begin()
    trainer.callbacks("on_evaluate_begin", trainer)
    with (
        accelerator.autocast(),
        tqdm(
            total=how.num_eval_episodes,
            desc="evaluating",
            unit="episode",
            leave=False,
            disable=not accelerator.is_main_process,
        ) as bar,
    ):
        played = evaluate(
            trainer.policy,
            trainer.pool,
            how.num_eval_episodes,
            seed=recipe.run.seed,
            greedy=how.eval_greedy,
            on_episode=trainer.run.stopping.then(lambda: bar.update(accelerator.num_processes)),
        )
    about = {"policy": recipe.run.run_name, "split": "validation", "timesteps": trainer.timesteps}
    evaluation = dataclasses.replace(played, about={**about, **played.about})
    trainer.evaluations.append(evaluation.rates())
    if accelerator.is_main_process:
        path = trainer.folders.evaluation(trainer.timesteps)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(evaluation.to_dict()) + "\n")
    trainer.callbacks("on_evaluate", trainer, evaluation)
    return evaluation
