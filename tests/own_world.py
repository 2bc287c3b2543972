"""A world of a user's own: what he writes, a module and a recipe of a few lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium

MODULE = '''
import gymnasium as gym
import numpy as np
from gymnasium import spaces

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


class Corridor(gym.Env):
    """A square walks to the pad of the colour that is asked for."""

    words = {"left": 0, "right": 1, "far left": 2, "far right": 3, "stay": 4}
    facts = {"side": ["west", "east"], "moves": None}
    instructions = {"red": ["Go to red.", "Find the red pad."], "blue": ["Go to blue."]}
    stages = ["near"]
    privileged_names = ["position", "target"]
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, length=9, drifts=False, dies_at=None, render_mode=None):
        self.length, self.drifts, self.dies_at = length, drifts, dies_at
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(5)
        self.observation_space = spaces.Dict({"view": spaces.Box(0, 255, (56, 72, 3), np.uint8)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = ["red", "blue"][int(self.np_random.integers(2))]
        self.is_mirrored = bool(self.np_random.integers(2))
        self.position, self.moves = self.length // 2, 0
        if self.drifts:
            self.position += int(np.random.default_rng().integers(-2, 3))
        return self.see(), self.tell() | {"instruction": self.goal}

    @property
    def target(self):
        return 0 if (self.goal == "red") != self.is_mirrored else self.length - 1

    def step(self, action):
        self.moves += 1
        if self.dies_at is not None and not self.dies_at_is_over():
            raise RuntimeError("the floor gave way")
        there = self.position + (-1, 1, -2, 2, 0)[action]
        self.position = int(np.clip(there, 0, self.length - 1))
        is_over = self.position in (0, self.length - 1)
        return self.see(), float(self.position == self.target), is_over, False, self.tell()

    def dies_at_is_over(self):
        """Whether the one failure that there is to be has been: a file says so."""
        from pathlib import Path
        marker, moves = self.dies_at
        if self.moves == moves and not Path(marker).exists():
            Path(marker).touch()
            return False
        return True

    def tell(self):
        is_near = abs(self.position - self.target) <= 2
        side = "east" if self.position > self.length // 2 else "west"
        return {"side": side, "moves": self.moves, "stage": "near" if is_near else None}

    def see(self):
        view = np.zeros((56, 72, 3), np.uint8)
        pads = ("blue", "red") if self.is_mirrored else ("red", "blue")
        view[:, :8], view[:, -8:] = COLOURS[pads[0]], COLOURS[pads[1]]
        view[24:32, 8 * self.position : 8 * self.position + 8] = 255
        return {"view": view}

    def privileged_state(self):
        return np.array([self.position, self.target], np.float32)

    def expert_word(self):
        return "far left" if self.target < self.position else "far right"

    def render(self):
        return self.see()["view"]


def closeness(env, info, success):
    """A reward of one's own."""
    return 2.0 * success - 0.1


def broken(env, info, success):
    return float("nan")


def lost(env, info, success=None):
    return info["there"]


gym.register("Corridor-v0", Corridor, max_episode_steps=20)
'''

TEMPLATE = "{{ image }} {{ task }} {{ side }} {{ moves }} {{ last_action }}"

RECIPE = """\
env: corridor:Corridor-v0
prompt_template: corridor.jinja
run_name: corridor
horizon: 12
"""


SMALL = {
    "frame_size": 28,
    "num_envs": 2,
    "num_workers": 1,
    "rollout_steps": 8,
    "total_timesteps": 16,
    "batch_size": 8,
    "n_epochs": 1,
    "report_episodes": 0,
}
"""Settings of a run of seconds."""


@contextmanager
def own_world(folder: Path) -> Iterator[Path]:
    """The recipe of that world in a folder from which its module can be imported."""
    (folder / "corridor.py").write_text(MODULE)
    (folder / "corridor.jinja").write_text(TEMPLATE)
    (folder / "corridor.yaml").write_text(RECIPE)
    sys.path.insert(0, str(folder))
    try:
        yield folder / "corridor.yaml"
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("corridor", None)
        gymnasium.registry.pop("Corridor-v0", None)
