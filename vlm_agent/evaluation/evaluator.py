"""``Evaluator``: the evaluations of a run, on the same validation episodes each time."""

from __future__ import annotations

import json
from typing import Any

from accelerate import Accelerator

from vlm_agent.evaluation.evaluate import evaluate_over_ranks, read_result, summarize
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.checkpoints import RunFolders
from vlm_agent.runs.tracking import MetricsLog
from vlm_agent.world.episode import Episode, save_episode
from vlm_agent.world.pool.pool import EnvPool


class Evaluator:
    """Plays the recipe's validation episodes and keeps what came of it.

    Args:
        recipe: The run.
        accelerator: Talks to the other processes, which share the episodes.
        pool: This process's environments.
        log: Takes the rates.

    Attributes:
        history: The rates of each evaluation, oldest first.
    """

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, pool: EnvPool, log: MetricsLog
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.pool = pool
        self.log = log
        self.folders = RunFolders(recipe)
        self.history: list[dict[str, Any]] = []

    def __call__(self, policy: VLMPolicy, timesteps: int) -> dict[str, Any]:
        """Evaluate a policy; the rates, and each episode's seed and words.

        Args:
            policy: Who speaks.
            timesteps: When, in the run's own time.
        """
        ppo = self.recipe.ppo
        policy.eval()
        records = evaluate_over_ranks(
            self.accelerator, policy, self.pool, ppo.num_eval_episodes, ppo.seed, ppo.eval_greedy
        )
        about = {"policy": ppo.run_name, "split": "validation", "timesteps": timesteps}
        how = {"greedy": ppo.eval_greedy, "seed": ppo.seed}
        result = summarize(records, policy.words, **about, **how)
        rates = {key: value for key, value in result.items() if key != "episodes"}
        self.history.append(rates)
        if self.accelerator.is_main_process:
            self.log.track({"eval": rates}, timesteps)
            path = self.folders.evaluation(timesteps)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result) + "\n")
        return result

    def save_examples(self) -> None:
        """Write an episode as it was at the first evaluation, and the same at the last.

        Both are of one seed: if there is one, of an episode that was solved only at the last.
        """
        if not self.history:
            return
        times = self.history[0]["timesteps"], self.history[-1]["timesteps"]
        if not all(self.folders.evaluation(time).is_file() for time in times):
            return  # the run was resumed elsewhere than it began
        before, after = (read_result(self.folders.evaluation(time))["episodes"] for time in times)
        shown = max(
            range(len(after)),
            key=lambda n: (after[n]["success"], not before[n]["success"], after[n]["return"]),
        )
        words = self.recipe.prompt.action_words
        for path, episodes in ((self.folders.before, before), (self.folders.after, after)):
            said = tuple(words.index(word) for word in episodes[shown]["words"])
            episode = Episode(episodes[shown]["seed"], said)
            save_episode(path, episode, self.recipe.env, tuple(words))
