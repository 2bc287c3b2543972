"""How well the pool fills the cores: with simulation only, and in rollouts with a policy."""

from __future__ import annotations

import os
import time
from typing import Any

import psutil
from tqdm import tqdm

from vlm_agent.common.seeding import derive_rng
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.rollout.collector import RolloutCollector
from vlm_agent.rollout.sources import FreshEpisodes
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.pool import EnvPool
from vlm_agent.world.robosuite.tasks import get_task

BLOCK = 60
"""Steps that one contender makes before it is the other's turn."""

GROUP = 8
"""Environments in each of the two groups of the simulation."""

WARM_UP = 8
"""Steps before a rollout is measured."""

ENVS_PER_CORE = 8
"""Environments per core in the rollouts; the model's batch is half of all."""


def measure(task: str, robot: str, frame_size: int, words: int) -> dict[str, Any]:
    """Measure simulation only, then rollouts; ``words`` per environment in each."""
    config = EnvConfig(task=task, robot=robot, frame_size=frame_size)
    return {**_simulation(config, words), **_rollouts(config, words)}


def _simulation(config: EnvConfig, words: int) -> dict[str, Any]:
    """Random words in as many environments with one worker and with two, turn by turn."""
    num_envs = 2 * GROUP
    seconds = {1: 0.0, 2: 0.0}
    with EnvPool(config, num_envs, 1) as one, EnvPool(config, num_envs, 2) as two:
        pools = {1: one, 2: two}
        for step in tqdm(range(0, words, BLOCK), desc="simulation", unit=f"{BLOCK} steps"):
            for workers, pool in pools.items():
                if step % config.horizon < BLOCK:
                    pool.reset({i: Episode(step + i, ()) for i in range(num_envs)})
                began = time.perf_counter()
                _say_random_words(pool, range(step, step + BLOCK))
                seconds[workers] += time.perf_counter() - began
    said = num_envs * -(-words // BLOCK) * BLOCK
    return {
        "words_per_s_1_worker": said / seconds[1],
        "words_per_s_2_workers": said / seconds[2],
        "scaling": seconds[1] / seconds[2],
    }


def _say_random_words(pool: EnvPool, steps: range) -> None:
    """In two groups, as a rollout does, so that a worker has the next message when it is done."""
    groups = range(GROUP), range(GROUP, 2 * GROUP)
    for step in steps:
        actions = derive_rng(0, "bench", step).integers(len(MOTIONS), size=pool.num_envs)
        for group in groups:
            if step > steps.start:
                pool.finish_step()
            pool.start_step({i: int(actions[i]) for i in group})
    for _ in groups:
        pool.finish_step()


def _rollouts(config: EnvConfig, words: int) -> dict[str, Any]:
    """Rollouts of the tiny policy, as in training, with two groups and with one."""
    cores = len(os.sched_getaffinity(0))
    template = (SHIPPED / "prompts" / "minimal.jinja").read_text()
    prompt = PromptTemplate(template, get_task(config.task).description, config.robot)
    policy = build_policy(ModelConfig(), prompt, seed=0).eval()
    num_envs = ENVS_PER_CORE * cores
    figures: dict[str, Any] = {"cores": cores, "rollout_envs": num_envs}
    speeds = {}
    for groups in (1, 2):
        with EnvPool(config, num_envs, cores) as pool:
            collector = RolloutCollector(pool, FreshEpisodes(0), seed=0, groups=groups)
            collector.collect_rollout(policy, WARM_UP)  # everything is warm from here on
            measured = _one_rollout(collector, policy, words)
        speeds[groups] = measured["words_per_s"]
        if groups == 2:
            figures |= measured
    return {**figures, "groups_speedup": speeds[2] / speeds[1]}


def _one_rollout(collector: RolloutCollector, policy: VLMPolicy, words: int) -> dict[str, float]:
    """Words per second of a rollout, and where the time of cores and trainer goes."""
    pool, cores = collector.pool, len(os.sched_getaffinity(0))
    processes = [psutil.Process(pid) for pid in (os.getpid(), *pool.worker_pids())]
    used, spent = _cpu_seconds(processes), collector.seconds()
    frames_spent = policy.encoder.frames.seconds
    began = time.perf_counter()
    with tqdm(total=words, desc=f"{len(collector.groups)} group(s)", unit="step") as bar:
        collector.collect_rollout(policy, words, bar.update)
    wall = time.perf_counter() - began
    return {
        "words_per_s": words * pool.num_envs / wall,
        "cpu_utilisation": (_cpu_seconds(processes) - used) / (wall * cores),
        **collector.shares(wall, since=spent),
        "frames_share": (policy.encoder.frames.seconds - frames_spent) / wall,
    }


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
