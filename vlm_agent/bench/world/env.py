"""How many words per second: stock robosuite, the environment, and what physics alone allows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tqdm import tqdm

from vlm_agent.bench.world.stock import make_stock_env
from vlm_agent.bench.world.walk import scene_of
from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.config import CONTROL_HZ, PHYSICS_HZ, EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.render.camera import EyeInHandCamera
from vlm_agent.world.robosuite.names import import_mujoco


def measure(task: str, robot: str, frame_size: int, words: int) -> dict[str, Any]:
    """Say the same random words in stock robosuite and in the environment, turn by turn.

    The floor is bare ``mj_step``, as many substeps, and one frame of the same camera, from the
    state that the environment is in, under the torques it has last applied.
    """
    config = EnvConfig(task=task, robot=robot, frame_size=frame_size)
    env = LanguageActionEnv(config)
    stock = make_stock_env(task, robot, frame_size)
    mujoco = import_mujoco()
    floor_env = LanguageActionEnv(config)
    floor_sim = scene_of(floor_env).env.sim
    camera = EyeInHandCamera(scene_of(floor_env), frame_size, config.camera)
    substeps = config.control_steps * PHYSICS_HZ // CONTROL_HZ

    def stock_word(action: int) -> None:
        motion = MOTIONS[action]
        push = np.zeros(stock.action_dim)
        push[:3] = motion.direction
        push[-1] = 1.0 if motion.gripper == "close" else -1.0
        for _ in range(config.control_steps):
            stock.step(push)

    def take_over_state() -> None:
        here, there = scene_of(env).env.sim.data._data, floor_sim.data._data
        for name in ("qpos", "qvel", "ctrl", "qacc_warmstart"):
            getattr(there, name)[:] = getattr(here, name)

    def floor_word(action: int) -> None:
        mujoco.mj_step(floor_sim.model._model, floor_sim.data._data, substeps)
        camera.frame()

    contenders = {"stock": stock_word, "ours": env.step, "floor": floor_word}
    names = list(contenders)
    seconds, parts = dict.fromkeys(names, 0.0), dict.fromkeys(env.seconds, 0.0)
    for word in tqdm(range(words), unit="word"):
        if word % config.horizon == 0:
            stock.reset()
            env.reset(seed=word)
            floor_env.reset(seed=word)
        action = int(derive_rng(0, "bench", word).integers(len(MOTIONS)))
        spent = dict(env.seconds)
        take_over_state()
        for name in np.roll(names, word):
            began = time.perf_counter()
            contenders[name](action)
            seconds[name] += time.perf_counter() - began
        for activity, before in spent.items():
            parts[activity] += env.seconds[activity] - before
    camera.close()
    env.close()
    floor_env.close()
    stock.close()
    return {
        **{f"{name}_words_per_s": words / seconds[name] for name in names},
        "speedup": seconds["stock"] / seconds["ours"],
        "of_physics_floor": seconds["floor"] / seconds["ours"],
        "physics_ms": parts["physics"] / words * 1e3,
        "rendering_ms": parts["rendering"] / words * 1e3,
    }
