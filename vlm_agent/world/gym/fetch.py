"""The Fetch tasks of gymnasium-robotics under eight words: Reach-v0, Push-v0, PickAndPlace-v0."""

import gymnasium as gym
import numpy as np
from gymnasium_robotics.envs.fetch import MujocoFetchEnv, pick_and_place, push, reach

from vlm_agent.world.gym.fetch_expert import WORDS, next_word

CAMERA = {"azimuth": 0, "distance": 2, "lookat": np.array([1.34, 0.75, 0.7])}
SETTINGS = {"reward_type": "dense", "height": 84, "default_camera_config": CAMERA}
COLOURS = {"table0": (0.1, 0.1, 0.1, 1), "object0": (1, 1, 0, 1), "finger_link": (0.1, 0.2, 1, 1)}


class Fetch(MujocoFetchEnv):
    words, expert_word = WORDS, next_word
    facts = {"gripper": ["closed", "open"], "height": ["low", "halfway", "high"]}
    metres, views = 0.9, (0, -90)  # from behind and from above, side by side

    def _initialize_simulation(self) -> None:
        super()._initialize_simulation()
        for geom, body in enumerate(self.model.geom_bodyid):
            if colour := COLOURS.get(self.model.body(body).name[-11:]):
                self.model.geom_rgba[geom], self.model.geom_matid[geom] = colour, -1
            else:  # the arm would hide what it is about
                self.model.geom_group[geom] = 4
        self.model.vis.global_.orthographic, self.model.vis.global_.fovy = 1, self.metres

    def _sample_goal(self) -> np.ndarray:
        # Fetch moves its red mark when it renders, and so changes the physics: not so here.
        goal = super()._sample_goal()
        self.model.site("target0").pos = goal - self.model.body("floor0").pos
        self._mujoco.mj_forward(self.model, self.data)
        return goal

    def render(self) -> np.ndarray:
        viewer, seen = self.mujoco_renderer._get_viewer("rgb_array"), []
        for viewer.cam.elevation in self.views:
            seen.append(self.mujoco_renderer.render("rgb_array"))
        return np.concatenate(seen, axis=1)

    def compute_terminated(self, achieved_goal: object, goal: object, info: dict) -> bool:
        height = np.digitize(self._get_obs()["observation"][2], (0.44, 0.47))
        info |= {"gripper": int(any(self.data.ctrl > 0.5)), "height": int(height)}
        return bool(info["is_success"])


for name, module in {"Reach": reach, "Push": push, "PickAndPlace": pick_and_place}.items():
    above = {"metres": 0.54, "views": (-90,)} if name == "Push" else {}  # the height is a fact
    task = type(name, (Fetch, getattr(module, f"MujocoFetch{name}Env")), above)
    gym.register(f"{name}-v0", task, kwargs=SETTINGS | {"width": 84 if above else 42})
