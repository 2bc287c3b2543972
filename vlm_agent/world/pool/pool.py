"""``EnvPool``: environments in worker processes that may die without anyone noticing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode
from vlm_agent.world.facts import facts_named
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.batch import StepBatch
from vlm_agent.world.pool.supervisor import Supervisor
from vlm_agent.world.pool.worker import Frames, MakeEnv, Step, WorkerSettings
from vlm_agent.world.registry import declare


class EnvPool(AbstractContextManager["EnvPool"]):
    """``num_envs`` copies of a :class:`LanguageActionEnv` in spawned worker processes.

    Each worker runs several environments and answers one message per step; frames come through
    shared memory. Results depend on seeds and words only, never on timing, on the number of
    workers, or on whether one of them had to be restarted (:class:`Supervisor`). Workers end with
    their parent, however it ends. Use it as a context manager.

    Args:
        config: The scene of every environment.
        num_envs: Number of environments N.
        num_workers: Worker processes; 0 means one per core, at most one per environment.
        gamma: Discount for the progress reward.
        gpu: Index of the GPU to draw on; ``None`` leaves that to EGL.
        timeout: Seconds without an answer after which a worker counts as hung.
        max_restarts: How often each worker is restarted before the pool gives up.
        make_env: Makes one from ``config``, ``gamma`` and ``facts``; the workers import it.
        facts: Names of the facts that observations tell; by default all but those told on request.
        privileged_state: Whether observations have ``states``, for a critic that reads them;
            the world has to have ``privileged_names``.

    Raises:
        UserError: There is no such world or fact, or it tells no privileged state.

    Attributes:
        world: What the environments' world declares.
        requests: How many resets and steps have been asked for, by anyone: who keeps episodes
            running in the pool sees by it whether somebody else has used it.
        state_size: S, how many numbers the privileged state has; ``None`` where nobody asked.
        seconds: Time spent so far: on ``physics`` and ``rendering``, summed over the workers, and
            ``waiting`` for them.
        restarts: How often each worker has been restarted.
    """

    def __init__(  # noqa: PLR0913 (each with a default that suits a notebook)
        self,
        config: EnvConfig,
        num_envs: int,
        num_workers: int = 0,
        gamma: float = 0.99,
        gpu: int | None = None,
        timeout: float = 60.0,
        max_restarts: int = 3,
        make_env: MakeEnv = LanguageActionEnv,
        facts: Sequence[str] | None = None,
        privileged_state: bool = False,
    ) -> None:
        self.config = config
        self.world = declare(config)
        self.num_envs = num_envs
        told = self.world.usual_facts if facts is None else facts_named(facts, self.world.facts)
        self.facts = tuple(fact.name for fact in told)
        self.tells_state = privileged_state
        self.state_size = len(self.world.privileged_names) if privileged_state else None
        if self.state_size == 0:
            raise UserError(
                "value_input: 'state', or state_coef: this world tells no privileged state"
            )
        self.requests = 0
        self.num_workers = min(num_envs, num_workers or len(os.sched_getaffinity(0)))
        self._begun: deque[list[int]] = deque()  # the slots of each step that is under way
        frames = Frames.allocate(num_envs, config.frame_shape)
        self._pictures = frames.array()
        settings = [
            WorkerSettings(
                tuple(range(first, num_envs, self.num_workers)),
                config,
                gamma,
                frames,
                gpu,
                make_env,
                told,
                privileged_state,
            )
            for first in range(self.num_workers)
        ]
        self._supervisor = Supervisor(settings, timeout, max_restarts)
        self.seconds = self._supervisor.seconds
        self.restarts = self._supervisor.restarts

    def wait_until_ready(self) -> None:
        """Wait until all environments have been built.

        Raises:
            UserError: They cannot be, or a worker failed too often.
        """
        self._supervisor.wait_until_ready()

    @property
    def replays(self) -> bool:
        """Whether an episode is its seed and its words: probed where the world does not say so."""
        self.wait_until_ready()
        return self._supervisor.replays

    def reset(self, episodes: Mapping[int, Episode]) -> Observations:
        """Start episodes, or take them up after the words they have; the observations to act on.

        Args:
            episodes: Environment index -> episode; the observations are in their order.

        Raises:
            UserError: The environments cannot be built, or a worker failed too often.
        """
        if self._begun:
            raise RuntimeError("a step is under way: finish it before a reset")
        self._supervisor.drain()  # whoever asked was interrupted, or has abandoned it
        self.requests += 1
        self._supervisor.ask(episodes)
        reports = self._supervisor.receive(episodes)
        return self._stack(list(episodes), 0, [reports[slot].told for slot in episodes])

    def step(
        self, actions: Mapping[int, int], following: Mapping[int, Episode] | None = None
    ) -> StepBatch:
        """:meth:`start_step` and :meth:`finish_step` in one."""
        self.start_step(actions, following)
        return self.finish_step()

    def start_step(
        self, actions: Mapping[int, int], following: Mapping[int, Episode] | None = None
    ) -> None:
        """Say one word in each named environment, and do not wait for what comes of it.

        Args:
            actions: Environment index -> action.
            following: Environment index -> the episode to begin there if this word ends the
                present one.

        Raises:
            UserError: There is no word with that index.
        """
        for action in actions.values():
            self.world.vocabulary.checked(action)
        if not actions.keys().isdisjoint(slot for begun in self._begun for slot in begun):
            raise RuntimeError("a step is under way in one of these environments: finish it first")
        following = following or {}
        self.requests += 1
        self._begun.append(list(actions))
        self._supervisor.ask(
            {slot: Step(action, following.get(slot)) for slot, action in actions.items()}
        )

    def finish_step(self) -> StepBatch:
        """What the oldest step that is under way led to, in the order its actions were given."""
        slots = self._begun.popleft()
        reports = self._supervisor.receive(slots)
        chosen = [reports[slot] for slot in slots]
        rewards, terminated, truncated, infos = zip(
            *(report.outcome for report in chosen if report.outcome), strict=True
        )
        observations = following = self._stack(slots, 0, [report.told for report in chosen])
        begun = {i: report.fresh for i, report in enumerate(chosen) if report.fresh is not None}
        if begun:
            following = observations.copy()
            fresh = self._stack([slots[i] for i in begun], 1, list(begun.values()))
            following.put(list(begun), fresh)
        ends = np.array(terminated), np.array(truncated)
        return StepBatch(observations, following, np.array(rewards), *ends, list(infos))

    def abandon_steps(self) -> None:
        """Nobody will finish the steps under way; the next reset passes over what they led to."""
        self._begun.clear()

    def _stack(self, slots: list[int], which: int, told: Sequence[Any]) -> Observations:
        """Pictures in shared memory, with the facts and the states that came with them."""
        facts, states = zip(*told, strict=True)
        known = np.stack(states) if self.tells_state else None
        return Observations(self._pictures[which, slots], np.stack(facts), known)

    def worker_pids(self) -> list[int]:
        """The workers' process ids; a restarted one has another."""
        return self._supervisor.pids()

    def close(self) -> None:
        """End all workers. Safe to call twice."""
        self._supervisor.close()

    def __exit__(self, *exception: object) -> None:
        self.close()
