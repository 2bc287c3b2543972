"""robosuite tasks of a user's own."""

import numpy as np
from robosuite.environments.manipulation.lift import Lift
from robosuite.environments.manipulation.two_arm_lift import TwoArmLift

from vlm_agent.world.robosuite.tasks import Goal, Task


class PushedAside(Lift):
    """The cube belongs a hand's breadth to the left of where the table's middle is."""

    vlm_task = Task(
        "Put the cube on the left of the table.",
        target=lambda env: env.cube,
        goal=lambda env: Goal(np.array([0.0, 0.15, 0.82]), np.full(2, 0.04), 0.81, 0.815),
        can_be_restored=True,
    )

    def _check_success(self):
        return bool(self.sim.data.body_xpos[self.cube_body_id][1] > 0.1)


class Like(Lift):
    """Declares nothing."""


class Wrong(Lift):
    vlm_task = "Lift it."


class TwoArms(TwoArmLift):
    pass


def a_function():
    pass
