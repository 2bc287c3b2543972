"""MiniGrid's GoToDoor, in which the mission is the instruction: GoToDoor-v0."""

from collections import deque
from typing import Any

import gymnasium as gym
from minigrid.core.constants import COLOR_NAMES, DIR_TO_VEC
from minigrid.envs.gotodoor import GoToDoorEnv


class GoToDoor(GoToDoorEnv):
    """To say ``done`` ends an episode; it is solved if that is next to the door asked for."""

    words = {"left": 0, "right": 1, "forward": 2, "done": 6}
    instructions = {colour: [f"go to the {colour} door"] for colour in COLOR_NAMES}

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        seen, info = super().reset(**options)
        return seen, {**info, "instruction": self.target_color}

    def expert_word(self) -> str:
        """The first word on a shortest way, by breadth-first search."""
        begin = (*self.agent_pos, self.agent_dir)
        queue, known = deque([(begin, "done")]), {begin}
        while True:
            (x, y, turned), first = queue.popleft()
            if abs(x - self.target_pos[0]) + abs(y - self.target_pos[1]) == 1:
                return first
            ahead = x + DIR_TO_VEC[turned][0], y + DIR_TO_VEC[turned][1]
            ways = {"left": (x, y, (turned - 1) % 4), "right": (x, y, (turned + 1) % 4)}
            if self.grid.get(*ahead) is None:
                ways["forward"] = (*ahead, turned)
            for word, place in ways.items():
                if place not in known:
                    known.add(place)
                    queue.append((place, word if (x, y, turned) == begin else first))


gym.register("GoToDoor-v0", GoToDoor)
