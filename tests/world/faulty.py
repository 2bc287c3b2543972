"""Environments that fail in their worker, once or always, as environment variables say.

``FAULT`` names the way, ``FAULT_MARKER`` a file: while it is missing, the fault happens when the
episode with seed ``FAULT_SEED`` is to say its third word, and the file is made first.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from vlm_agent.world.robosuite.env import LanguageActionEnv

FAULT_SEED = 1
FAULT_STEP = 2


class FaultyEnv(LanguageActionEnv):
    """Fails once at its third word, unless ``FAULT`` is ``always``."""

    def step(self, action: int) -> tuple[Any, ...]:
        marker = Path(os.environ["FAULT_MARKER"])
        due = os.environ["FAULT"] == "always" or not marker.exists()
        if due and self.episode_seed == FAULT_SEED and self._step == FAULT_STEP:
            marker.touch()
            fail(os.environ["FAULT"])
        return super().step(action)


class DriftingEnv(FaultyEnv):
    """Fails like its parent, and then replays to another state than the first time."""

    def reset(self, **keywords: Any) -> tuple[Any, ...]:
        answer = super().reset(**keywords)
        if Path(os.environ["FAULT_MARKER"]).exists():
            self.scene.physics_state()[0][0] += 1e-9
        return answer


def fail(how: str) -> None:
    if how == "hang":
        time.sleep(1000)
    if how in ("SIGKILL", "SIGSEGV"):
        os.kill(os.getpid(), signal.Signals[how])
    if how == "EOFError":
        raise EOFError("truncated asset")
    raise RuntimeError("the arm fell off")
