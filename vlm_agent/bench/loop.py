"""What an iteration of PPO costs: ours, as it is usually written, in two processes, and ahead.

The plain one is a rollout in stock robosuite, which renders at each control step, environment by
environment; each word scored as a sequence of its own; and an update that looks at the pictures
again and scores the whole vocabulary at all positions. It learns the same: ratios begin at 1.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from vlm_agent.bench.iterations import ITERATION, measure_apart, trainer_of
from vlm_agent.bench.scoring import eight_sequences, library_inputs
from vlm_agent.bench.update import NaivePolicy, benchmark_learner
from vlm_agent.bench.world.stock import make_stock_env
from vlm_agent.ppo.update import PPOUpdate
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.runs.begin import start_policy
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.observations import Observations

PROMPT = "prompts/minimal.jinja"
"""Of the tiny policy's recipes; with a long one both spend their time on the language model."""


def measure(num_envs: int, rollout_steps: int, rounds: int) -> dict[str, Any]:
    """Ratios of words per second; each pair is measured in turns, or one after the other."""
    sizes = {"num_envs": num_envs, "rollout_steps": rollout_steps}
    sizes["batch_size"] = min(32, num_envs * rollout_steps)
    with tempfile.TemporaryDirectory() as folder:
        figures = against_plain(Path(folder), sizes, rounds)
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            figures |= in_processes(Path(folder), sizes, rounds, cores[:2])
    return figures


def against_plain(folder: Path, sizes: dict[str, int], rounds: int) -> dict[str, Any]:
    settings: dict[str, Any] = {**ITERATION, **sizes, "output_dir": str(folder)}
    settings["prompt_template"] = PROMPT
    recipe = Recipe.load(**settings)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    with trainer_of(recipe) as trainer, PlainLoop(recipe) as plain:

        def ours() -> None:
            trainer.update(trainer.collect()[0])

        for round_ in tqdm(range(-1, rounds), desc="iterations"):
            for name, iterate in (("ours", ours), ("plain", plain.iterate)):
                began = time.perf_counter()
                iterate()
                if round_ >= 0:  # one to warm up
                    seconds[name].append(time.perf_counter() - began)
        error = plain.first_ratio_error
    words = recipe.rollout.num_envs * recipe.rollout.rollout_steps
    ours_s, plain_s = (statistics.median(seconds[name]) for name in ("ours", "plain"))
    return {
        "speedup": plain_s / ours_s,
        "ours_words_per_s": words / ours_s,
        "plain_words_per_s": words / plain_s,
        "plain_first_ratio_error": error,
    }


class PlainLoop:
    """The same iteration without anything that this package is for.

    Args:
        recipe: The world, the policy and the sizes.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.policy = start_policy(recipe)
        self.policy.__class__ = NaivePolicy
        self.policy.model_pass.vision_is_frozen = False  # as far as the update knows
        self.model: Any = self.policy.inner_model
        self.learner = benchmark_learner(Accelerator(cpu=True), self.policy, recipe)
        self.improve = PPOUpdate(recipe, self.learner)
        env = recipe.env
        make = (env.task, env.robot, env.frame_size)
        self.envs = [make_stock_env(*make) for _ in range(recipe.rollout.num_envs)]
        self.frames = [self._frame(env.reset()) for env in self.envs]
        self.generator = torch.Generator().manual_seed(0)
        self.step, self.updates, self.first_ratio_error = 0, 0, 0.0

    def __enter__(self) -> PlainLoop:
        return self

    def __exit__(self, *_: object) -> None:
        for env in self.envs:
            env.close()

    @staticmethod
    def _frame(observation: dict[str, np.ndarray]) -> np.ndarray:
        return observation["robot0_eye_in_hand_image"][::-1]

    def iterate(self) -> None:
        """A rollout and an update."""
        self.policy.eval()
        measured = self.improve(self.rollout(), self.updates, 1e-4)
        self.first_ratio_error = max(self.first_ratio_error, measured["first_ratio_error"])
        self.updates += 1

    @torch.no_grad()
    def rollout(self) -> RolloutBuffer:
        """Words, one after the other."""
        steps = self.recipe.rollout.rollout_steps
        last_N = np.full(len(self.envs), len(MOTIONS))
        buffer = RolloutBuffer.empty(steps, self._observations(last_N), 0.0)
        encoder = self.policy.encoder
        for t in range(steps):
            seen = self._observations(last_N)
            inputs = library_inputs(encoder, seen, "cpu")
            scores_NA = eight_sequences(self.model, encoder, inputs, tokens_scored=1)
            log_probs_NA = scores_NA.log_softmax(-1)
            chosen_N1 = torch.multinomial(log_probs_NA.exp(), 1, generator=self.generator)
            actions = chosen_N1[:, 0].numpy()
            buffer.observations.put((t, slice(None)), seen)
            buffer.actions[t] = actions
            buffer.log_probs[t] = log_probs_NA.gather(-1, chosen_N1)[:, 0]
            for n, env in enumerate(self.envs):
                buffer.rewards[t, n] = self._say(n, env, int(actions[n]))
            last_N = actions
            self.step += 1
        return buffer

    def _say(self, n: int, env: Any, action: int) -> float:
        """A word in stock robosuite: a picture at each control step."""
        motion = MOTIONS[action]
        push = np.zeros(env.action_dim)
        push[:3] = motion.direction
        push[-1] = 1.0 if motion.gripper == "close" else -1.0
        for _ in range(self.recipe.env.control_steps):
            observation, reward, _, _ = env.step(push)
        self.frames[n] = self._frame(observation)
        return reward

    def _observations(self, last_N: np.ndarray) -> Observations:
        horizon = self.recipe.env.horizon
        said = self.step % horizon
        facts = [[0, int(last), said, horizon - said] for last in last_N]
        return Observations(np.stack(self.frames), np.array(facts, np.int32))


def in_processes(
    folder: Path, sizes: dict[str, int], rounds: int, cores: list[int]
) -> dict[str, Any]:
    """Two processes with a core each against one with one; ahead against in turn."""
    one, two = [cores[0]], [[cores[0]], [cores[1]]]
    words = {**sizes, "total_timesteps": (rounds + 2) * sizes["num_envs"] * sizes["rollout_steps"]}
    ahead = {"async_rollout": 1}
    runs: dict[str, Callable[[Path], dict[str, float]]] = {
        "1proc": lambda file: measure_apart(file, words, rounds, [one]),
        "2proc": lambda file: measure_apart(file, words, rounds, two),
        "2proc_ahead": lambda file: measure_apart(file, words | ahead, rounds, two),
        # The environments have one core, the model the other.
        "apart": lambda file: measure_apart(file, words, rounds, [one], two[1]),
        "apart_ahead": lambda file: measure_apart(file, words | ahead, rounds, [one], two[1]),
    }
    found = {}
    for name, run in tqdm(runs.items(), desc="processes"):
        found[name] = run(folder / name)
    rates = {name: figures["words_per_s"] for name, figures in found.items()}
    return {
        "scaling_2proc": rates["2proc"] / rates["1proc"],
        "waiting_share": found["2proc"]["waiting_share"],
        "async_speedup": rates["apart_ahead"] / rates["apart"],
        "async_speedup_2proc": rates["2proc_ahead"] / rates["2proc"],
        **{f"words_per_s_{name}": rate for name, rate in rates.items()},
    }
