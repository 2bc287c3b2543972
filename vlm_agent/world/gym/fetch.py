"""The Fetch tasks of gymnasium-robotics under eight words: Reach-v0, Push-v0, PickAndPlace-v0."""

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium_robotics.envs.fetch import MujocoFetchEnv, pick_and_place, push, reach

from vlm_agent.world.gym.fetch_expert import WORDS, next_word

CAMERA = {"azimuth": 0, "distance": 2, "lookat": np.array([1.34, 0.75, 0.7])}
SETTINGS = {"reward_type": "dense", "width": 42, "height": 84, "default_camera_config": CAMERA}
COLOURS = {"table0": (0.1, 0.1, 0.1, 1), "object0": (1, 1, 0, 1), "finger_link": (0.1, 0.2, 1, 1)}


class Fetch(MujocoFetchEnv):
    words = WORDS
    facts = {"gripper": ["closed", "open"]}
    expert_word = next_word

    def _initialize_simulation(self) -> None:
        super()._initialize_simulation()
        for geom, body in enumerate(self.model.geom_bodyid):
            colour = COLOURS.get(self.model.body(body).name[-11:])
            if colour:
                self.model.geom_rgba[geom], self.model.geom_matid[geom] = colour, -1
            else:  # the arm would hide what it is about
                self.model.geom_group[geom] = 4
        self.model.vis.global_.orthographic, self.model.vis.global_.fovy = 1, 0.9

    def _sample_goal(self) -> np.ndarray:
        # Fetch moves its red mark when it renders, and so changes the physics: not so here.
        goal = super()._sample_goal()
        self.model.site("target0").pos = goal - self.model.body("floor0").pos
        mujoco.mj_forward(self.model, self.data)
        return goal

    def render(self) -> np.ndarray:
        viewer, views = self.mujoco_renderer._get_viewer("rgb_array"), []
        for viewer.cam.elevation in (0, -90):  # from behind and from above, side by side
            views.append(self.mujoco_renderer.render("rgb_array"))
        return np.concatenate(views, axis=1)

    def compute_terminated(self, achieved_goal: object, goal: object, info: dict) -> bool:
        info["gripper"] = int(any(self.data.ctrl > 0.5))
        return bool(info["is_success"])


for name, module in {"Reach": reach, "Push": push, "PickAndPlace": pick_and_place}.items():
    task = type(name, (Fetch, getattr(module, f"MujocoFetch{name}Env")), {})
    gym.register(f"{name}-v0", task, kwargs=SETTINGS)
