"""The settings of the world."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from vlm_agent.common.settings import STRICT, setting

PHYSICS_HZ = 500
"""MuJoCo steps per simulated second in every robosuite scene."""

CONTROL_HZ = 20
"""robosuite's control steps per simulated second."""


def _divides_physics(rate: int) -> int:
    if PHYSICS_HZ % rate:
        message = "it should divide the {physics} Hz of the physics"
        raise PydanticCustomError("divides", message, {"physics": PHYSICS_HZ})
    return rate


ControllerRate = Annotated[int, Field(ge=20, le=PHYSICS_HZ), AfterValidator(_divides_physics)]


REWARDS = {"progress": "robosuite", "staged": "robosuite", "own": "Gymnasium", "sparse": "any"}
"""The rewards that are no function of the user's own, and the worlds that give them."""


def _is_reward(name: str) -> str:
    if name and name not in REWARDS and not re.fullmatch(r"[\w.]+:\w+", name):
        message = "it should be {names}, or module:function"
        raise PydanticCustomError("reward", message, {"names": ", ".join(REWARDS)})
    return name


@dataclass(config=STRICT, frozen=True)
class EnvConfig:
    """Which world, what is seen of it, what words do in it, and what is rewarded."""

    env: str | None = setting(
        None, "a Gymnasium environment, as module:Id-v0; none: a robosuite task"
    )
    env_kwargs: dict[str, Any] = setting({}, "what the environment is made with")
    words: str | dict[str, Any] | None = setting(
        None,
        "what each word does: eight, turning or scaled, or a mapping; none: the environment's own, "
        "or eight",
    )
    picture: str | None = setting(
        None,
        "a Gymnasium environment's picture: a key of its observation, observation, or render; "
        "none: the observation if it is one, else render",
    )
    instructions: dict[str, list[str]] | list[str] | None = setting(
        None, "sentences for the task, one of which an episode's seed chooses; by goal if several"
    )
    held_out_instructions: dict[str, list[str]] | list[str] | None = setting(
        None, "further ones, which training does not use"
    )
    paraphrases: Literal["trained", "held_out", "all"] = setting(
        "trained", "which of these sentences are used"
    )
    task: str = setting(
        "PickPlaceCan", "robosuite task with one arm, e.g. PickPlaceCan, Lift, or module:Class"
    )
    tasks: list[str] = setting(
        [], "several robosuite tasks, one of which an episode's seed chooses"
    )
    robot: str = setting("Panda", "robosuite arm: Panda, Sawyer, UR5e, Kinova3, IIWA, Jaco")
    frame_size: Annotated[int, Field(ge=28, le=640)] = setting(
        112, "side of the square eye-in-hand frame, in pixels"
    )
    history: Annotated[int, Field(ge=1, le=16)] = setting(
        1, "how many pictures are seen at once: the present one, and those before the last words"
    )
    camera: Literal["fast", "exact"] = setting(
        "fast", "exact: robosuite's own pixels; fast: without mirror reflections, 2-3 times faster"
    )
    step_size: Annotated[float, Field(gt=0, le=0.2)] = setting(
        0.03, "how far one word moves the gripper's target, in metres"
    )
    control_steps: Annotated[int, Field(ge=1, le=100)] = setting(
        4, f"control steps ({CONTROL_HZ} a second) that one word takes"
    )
    controller_hz: ControllerRate = setting(
        100,
        "rate of the operational-space controller; 500 is stock robosuite, 100 is twice as fast",
    )
    horizon: Annotated[int, Field(ge=1, le=10_000)] = setting(
        120, "words after which an episode is truncated"
    )
    reward: Annotated[str, AfterValidator(_is_reward)] = setting(
        "",
        "progress: gain in robosuite's staged reward, discounted, plus success_bonus; "
        "staged: robosuite's staged reward at each word; own: a Gymnasium environment's own; "
        "sparse: 1 on success; or module:function of your own; default: progress, or own",
    )
    success: str | None = setting(
        None,
        "module:function that says whether the task is solved; none: what the environment says",
    )
    success_bonus: Annotated[float, Field(ge=0)] = setting(
        2.0, "added to the progress reward on success"
    )
    camera_shift: Annotated[float, Field(ge=-0.2, le=0.2)] = setting(
        0.0, "metres by which the hand's camera is moved to its right: a test of robustness"
    )
    camera_tilt: Annotated[float, Field(ge=-45, le=45)] = setting(
        0.0, "degrees by which it is tilted upwards"
    )
    randomize: dict[str, Any] = setting(
        {}, "ranges of what changes from episode to episode, e.g. light_brightness: [0.4, 1.4]"
    )
    object_colour: Literal["own", "red", "green", "blue"] = setting(
        "own", "the colour of the object that is handled"
    )
    light: Annotated[float, Field(ge=0, le=3)] = setting(
        1.0, "brightness of all lights, as a factor"
    )

    def __post_init__(self) -> None:
        if not self.reward:
            object.__setattr__(self, "reward", "own" if self.env else "progress")

    def changed(self, **settings: Any) -> EnvConfig:
        """The same with other settings; another kind of world has another default reward."""
        if bool(settings.get("env", self.env)) != bool(self.env):
            settings = {"reward": "", **settings}
        return dataclasses.replace(self, **settings)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Of what is seen, (H, W, 3): the pictures of ``history``, one under the other."""
        return self.history * self.frame_size, self.frame_size, 3

    @property
    def name(self) -> str:
        """The world's name: an environment's or a task's."""
        return self.env or ", ".join(self.tasks) or self.task

    @property
    def modules(self) -> list[str]:
        """The modules it names, whose code an environment of it runs."""
        named = (self.env, self.reward, self.success, self.task, *self.tasks)
        return [name.split(":")[0] for name in named if name and ":" in name]
