"""One run of PPO, from recipe to summary."""

from __future__ import annotations

from vlm_agent.demonstrations.reading import check_demonstrations
from vlm_agent.ppo.trainer import PPOTrainer
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.begin import Run, resumed_policy, start_policy
from vlm_agent.runs.reporting import mind_of


def run_training(recipe: Recipe) -> None:
    """PPO as the recipe says; leave checkpoints, metrics, curves and a video.

    Raises:
        UserError: The launch, the model, the robots or the run's folder is not as the recipe needs
            it.
        TrainingError: The run cannot go on.
    """
    if recipe.curriculum.curriculum != "none":
        check_demonstrations(recipe)
    run = Run(recipe)
    recipe = run.recipe
    with run.watch(), recipe.make_pool() as pool:
        folder = run.resume_folder()
        policy = resumed_policy(folder, recipe) if folder else start_policy(recipe)
        pool.wait_until_ready()
        trainer = PPOTrainer(policy, pool, recipe, run=run)
        if folder:
            trainer.resume(folder)
        with run.stopping:
            trainer.train()
    mind = mind_of(trainer.policy, trainer.actor_critic)
    run.finish(trainer.timesteps, trainer.evaluations, mind)
