"""One warm start, from recipe to summary."""

from __future__ import annotations

from vlm_agent.demonstrations.reading import check_demonstrations
from vlm_agent.imitation.checks import check_warm_start
from vlm_agent.imitation.trainer import ImitationTrainer
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.begin import Run, resumed_policy, start_policy
from vlm_agent.runs.reporting import mind_of
from vlm_agent.world.env import ExpertEnv

FIXED = ("dagger_words", "num_demo_episodes", "demo_noise")
"""What decides what has been learnt from so far, and is read again."""


def run_imitation(recipe: Recipe) -> None:
    """The warm start as the recipe says; leave the policy, metrics, curves and a video.

    Raises:
        UserError: The launch, the model, the robots or the run's folder is not as the recipe needs
            it; or the demonstrations are missing.
        TrainingError: The run cannot go on.
    """
    check_warm_start(recipe)
    check_demonstrations(recipe)  # before an earlier run is overwritten for nothing
    run = Run(recipe)
    recipe = run.recipe
    with run.watch(), recipe.make_pool(ExpertEnv) as pool:
        folder = run.resume_folder()
        policy = resumed_policy(folder, recipe, FIXED) if folder else start_policy(recipe)
        pool.wait_until_ready()
        trainer = ImitationTrainer(policy, pool, recipe, run=run)
        if folder:
            trainer.resume(folder)
        with run.stopping:
            trainer.train()
    mind = mind_of(trainer.policy, trainer.actor_critic)
    run.finish(trainer.timesteps, trainer.evaluations, mind)
