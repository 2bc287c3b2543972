"""Environments that fail in their worker, once or always."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_agent.world.env import LanguageActionEnv

FAULT_SEED = 1
FAULT_STEP = 2


@dataclass(frozen=True)
class Faulty:
    """Makes environments that fail when the episode of :data:`FAULT_SEED` is to say a third word.

    Attributes:
        fault: Which way.
        marker: A file that is made before the fault; where it is, there is none.
        is_lasting: Fail every time.
        drifts: Replay to another state than the first time, once it has failed.
    """

    fault: str
    marker: Path
    is_lasting: bool = False
    drifts: bool = False

    def __call__(self, *arguments: Any, **options: Any) -> FaultyEnv:
        return FaultyEnv(self, *arguments, **options)


class FaultyEnv(LanguageActionEnv):
    """One of them."""

    def __init__(self, how: Faulty, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.how = how

    def reset(self, **keywords: Any) -> tuple[Any, ...]:
        answer = super().reset(**keywords)
        if self.how.drifts and self.how.marker.exists():
            self.world.scene.physics_state()[0][0] += 1e-9
        return answer

    def step(self, action: int) -> tuple[Any, ...]:
        is_due = self.how.is_lasting or not self.how.marker.exists()
        if is_due and self.episode_seed == FAULT_SEED and self.words_said == FAULT_STEP:
            self.how.marker.touch()
            fail(self.how.fault)
        return super().step(action)


def fail(how: str) -> None:
    if how == "hang":
        time.sleep(1000)
    if how in ("SIGKILL", "SIGSEGV"):
        os.kill(os.getpid(), signal.Signals[how])
    if how == "EOFError":
        raise EOFError("truncated asset")
    raise RuntimeError("the arm fell off")
