"""``EnvPool``: several environments in worker processes, stepped in lockstep."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vlm_agent.errors import UserError
from vlm_agent.observations import Observations
from vlm_agent.robot.config import EnvConfig
from vlm_agent.robot.env import LanguageActionEnv
from vlm_agent.robot.episode import Episode


@dataclass(frozen=True)
class StepBatch:
    """What one word in each of N environments led to.

    Attributes:
        observations: After the word, before any reset: leading axis N.
        rewards: float64 (N,).
        terminated: bool (N,), the task is done.
        truncated: bool (N,), the time is up.
        infos: One ``info`` per environment.
    """

    observations: Observations
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    infos: list[dict[str, Any]]


class EnvPool:
    """``num_envs`` copies of a :class:`LanguageActionEnv` in spawned worker processes.

    Each worker owns several environments and answers one message per step, so results depend on
    seeds and words only, never on timing or on the number of workers. Use it as a context manager.

    Args:
        config: The scene of every environment.
        num_envs: Number of environments N.
        num_workers: Worker processes; 0 means one per core, at most one per environment.
        gamma: Discount for the progress reward.

    Raises:
        UserError: A worker failed; the message carries the worker's own traceback.
    """

    def __init__(
        self, config: EnvConfig, num_envs: int, num_workers: int = 0, gamma: float = 0.99
    ) -> None:
        self.num_envs = num_envs
        self.num_workers = min(num_envs, num_workers or len(os.sched_getaffinity(0)))
        self._slots = [list(range(w, num_envs, self.num_workers)) for w in range(self.num_workers)]
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for slots in self._slots:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, config, gamma, slots), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def reset(self, episodes: Mapping[int, Episode]) -> Observations:
        """Start episodes, or take them up after the words they already have.

        Args:
            episodes: Environment index -> episode.

        Returns:
            The observations to act on, in the order of ``episodes``.
        """
        answers = self._ask("reset", episodes)
        return Observations.stack([answers[index] for index in episodes])

    def step(self, actions: Mapping[int, int]) -> StepBatch:
        """Say one word in each named environment: index -> action. Keeps the order given."""
        answers = self._ask("step", actions)
        observations, rewards, terminated, truncated, infos = zip(
            *(answers[index] for index in actions), strict=True
        )
        return StepBatch(
            Observations.stack(observations),
            np.array(rewards),
            np.array(terminated),
            np.array(truncated),
            list(infos),
        )

    def _ask(self, verb: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        """Send each worker its share, then collect the answers: environment index -> answer."""
        busy = []
        for worker, slots in enumerate(self._slots):
            share = {slot: arguments[slot] for slot in slots if slot in arguments}
            if share:
                self._send(worker, (verb, share))
                busy.append(worker)
        answers: dict[int, Any] = {}
        for worker in busy:
            answers.update(self._receive(worker))
        return answers

    def _send(self, worker: int, message: Any) -> None:
        try:
            self._pipes[worker].send(message)
        except OSError:
            # The worker is gone; what it left in the pipe says why.
            self._receive(worker)

    def _receive(self, worker: int) -> dict[int, Any]:
        try:
            answer = self._pipes[worker].recv()
        except (EOFError, ConnectionError):
            self._processes[worker].join(5)
            code = self._processes[worker].exitcode
            raise UserError(f"environment worker {worker} died with exit code {code}") from None
        if isinstance(answer, str):
            raise UserError(f"environment worker {worker} failed:\n{answer}")
        return answer

    def close(self) -> None:
        """End all workers. Safe to call twice."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _work(pipe: Connection, config: EnvConfig, gamma: float, slots: list[int]) -> None:
    """A worker's life: make the environments, answer until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        envs = {slot: LanguageActionEnv(config, gamma) for slot in slots}
        while True:
            verb, arguments = pipe.recv()
            answer: dict[int, Any] = {}
            for slot, argument in arguments.items():
                if verb == "reset":
                    options = {"actions": argument.actions}
                    observation, _ = envs[slot].reset(seed=argument.seed, options=options)
                    answer[slot] = Observations.from_env(observation)
                else:
                    observation, *rest = envs[slot].step(argument)
                    answer[slot] = (Observations.from_env(observation), *rest)
            pipe.send(answer)
    except (EOFError, BrokenPipeError):
        return  # the parent closed the pool, or is gone
    except Exception:
        pipe.send(traceback.format_exc())
