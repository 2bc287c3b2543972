"""``Scenes``: several robosuite tasks in one process, one of which an episode's seed chooses."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.robosuite.appearance.props import Edit
from vlm_agent.world.robosuite.names import scene_name
from vlm_agent.world.robosuite.scene import RobotScene


class Scenes:
    """Simulations of all tasks that episodes may be about.

    Tasks of the same robosuite environment, ``PickPlace/can`` and ``PickPlace/milk``, share a
    simulation.

    Args:
        tasks: Names of tasks, see :func:`vlm_agent.world.robosuite.tasks.get_task`.
        robot: robosuite arm.
        controller_hz: Rate of the controller.
        edit: What to make of robosuite's environments before they are used.

    Attributes:
        tasks: Their names.
        by_name: The scene of each robosuite environment, by its name. Whoever renders needs a
            camera for each of them.

    Raises:
        UserError: There are no tasks, one stands there twice, or a name is unknown.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        robot: str = "Panda",
        controller_hz: int = 100,
        edit: Edit | None = None,
    ) -> None:
        if not tasks:
            raise UserError("tasks: expected one task or more")
        if twice := sorted({task for task in tasks if list(tasks).count(task) > 1}):
            raise UserError(f"tasks: {', '.join(map(repr, twice))} stands there twice")
        self.tasks = tuple(tasks)
        self.by_name: dict[str, RobotScene] = {}
        for task in self.tasks:
            if scene_name(task) not in self.by_name:
                self.by_name[scene_name(task)] = RobotScene(task, robot, controller_hz, edit)

    def task_of(self, seed: int) -> str:
        """The task of the episode of that seed."""
        return self.tasks[int(derive_rng(seed, "task").integers(len(self.tasks)))]

    def about(self, task: str) -> RobotScene:
        """The scene of a task, about that task."""
        scene = self.by_name[scene_name(task)]
        if scene.task_name != task:
            scene.choose(task)
        return scene

    def close(self) -> None:
        """Free the simulations."""
        for scene in self.by_name.values():
            scene.close()
