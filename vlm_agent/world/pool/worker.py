"""The process that runs some of a pool's environments, and what it is asked and answers."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing as mp
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.common.lifetime import end_with_parent
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv, Observation
from vlm_agent.world.episode import Episode
from vlm_agent.world.facts import Fact
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.probe import replays
from vlm_agent.world.render.gl import select_gpu


@dataclass(frozen=True)
class Frames:
    """Pictures in shared memory, two per environment: after its last word, and of a new episode.

    The memory is anonymous, so that nothing is left behind, however the processes end.
    """

    memory: Any
    shape: tuple[int, ...]

    @classmethod
    def allocate(cls, num_envs: int, frame_shape: tuple[int, ...]) -> Frames:
        """Room for all environments of a pool.

        Raises:
            UserError: There is none.
        """
        shape = (2, num_envs, *frame_shape)
        size = int(np.prod(shape))
        try:
            return cls(mp.get_context("spawn").RawArray(ctypes.c_uint8, size), shape)
        except OSError as error:
            raise UserError(
                f"num_envs: no room in shared memory for {num_envs} environments' pictures "
                f"({size / 1e6:.0f} MB): {error}; in a container: --shm-size"
            ) from None

    def array(self) -> np.ndarray:
        """The pictures as uint8 (2, N, H, W, 3), without a copy."""
        return np.frombuffer(self.memory, np.uint8).reshape(self.shape)


MakeEnv = Callable[..., LanguageActionEnv]
"""``LanguageActionEnv``, or another importable name that makes one."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is made of.

    Attributes:
        slots: The environments it runs, by their index in the pool.
        config: Their scene.
        gamma: Discount for the progress reward.
        frames: Where the pictures go.
        gpu: Index of the GPU to draw on; ``None`` leaves that to EGL.
        make_env: Makes one of them, from ``config``, ``gamma`` and ``facts``.
        facts: What their observations tell.
        tells_state: Whether reports have the privileged state.
    """

    slots: tuple[int, ...]
    config: EnvConfig
    gamma: float
    frames: Frames
    gpu: int | None
    make_env: MakeEnv
    facts: tuple[Fact, ...]
    tells_state: bool


@dataclass(frozen=True)
class Step:
    """What an environment is asked for: a word, and the episode to begin if that ends this one."""

    action: int
    following: Episode | None = None


@dataclass(frozen=True)
class Lost:
    """The episode is lost: what to begin in its place; ``None`` for nothing."""

    following: Episode | None = None


Told = tuple[np.ndarray, np.ndarray | None]
"""Facts and privileged state of one observation; its picture is in shared memory."""


@dataclass(frozen=True)
class Report:
    """What an environment answers; its pictures are in shared memory.

    Attributes:
        told: Facts int32 (F,) after the word or the reset, and the privileged state float32 (S,),
            ``None`` where nobody asked. ``None`` after a lost episode, of which the pool knows.
        digest: Of the present state, see :meth:`LanguageActionEnv.digest`.
        outcome: Reward, terminated, truncated and info of a word; ``None`` after a reset.
        fresh: What was told of the episode that was begun after the word, if one was.
    """

    told: Told | None
    digest: bytes
    outcome: tuple[float, bool, bool, dict[str, Any]] | None = None
    fresh: Told | None = None


@dataclass(frozen=True)
class Answer:
    """A worker's answer to a message: slot -> report, and the seconds spent on each activity."""

    reports: dict[int, Report]
    seconds: dict[str, float]


Request = Mapping[int, Episode | Step | Lost]
"""Slot -> the episode to begin or take up, the word to say, or that an episode is lost."""

LOST = {"is_success": False, "stage": "none", "goal": "", "lost": True}
"""The info of a word in a lost episode."""


def run_worker(
    pipe: Connection, last_words: Connection, with_thread: bool, settings: WorkerSettings
) -> None:
    """A worker's life: make environments, say whether they replay, answer till the pipe is closed.

    A ``UserError`` or a traceback in place of an answer is its last message.

    Args:
        pipe: To the parent.
        last_words: A file for what it cannot send: the stacks of a crash, or of a hang (SIGUSR1).
        with_thread: Whether it may end with the thread that started it.
        settings: The environments.
    """
    _watch_parent(with_thread)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    faulthandler.enable(last_words.fileno())
    faulthandler.register(signal.SIGUSR1, last_words.fileno())
    # Mesa's software renderer starts a thread per core; here there is a worker per core.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    with contextlib.suppress(EOFError, OSError):  # the parent closed the pool, or is gone
        try:
            envs = make_envs(settings)
            do_replay = replays(next(iter(envs.values())))
        except BaseException as error:
            pipe.send(_as_message(error))
            return
        pictures = settings.frames.array()
        pipe.send(do_replay)
        while True:
            request: Request = pipe.recv()
            try:
                answer = _answer(envs, request, pictures, settings.tells_state)
            except BaseException as error:
                pipe.send(_as_message(error))
                return
            pipe.send(answer)


def make_envs(settings: WorkerSettings) -> dict[int, LanguageActionEnv]:
    """The environments by their index in the pool. They share what they remember of episodes."""
    if settings.gpu is not None:
        select_gpu(settings.gpu)
    envs = {
        slot: settings.make_env(settings.config, gamma=settings.gamma, facts=settings.facts)
        for slot in settings.slots
    }
    first = next(iter(envs.values()))
    for env in envs.values():
        env.moments = first.moments
    return envs


def _as_message(error: BaseException) -> UserError | str:
    """A ``UserError`` as it is, any other exception as its traceback."""
    return error if isinstance(error, UserError) else "".join(traceback.format_exception(error))


def _answer(
    envs: Mapping[int, LanguageActionEnv],
    request: Request,
    pictures: np.ndarray,
    tells_state: bool,
) -> Answer:
    """Do what is asked in each environment; ``pictures`` are the pool's (2, N, H, W, 3)."""
    before = _seconds(envs)
    reports = {
        slot: _do(envs[slot], what, pictures[:, slot], tells_state)
        for slot, what in request.items()
    }
    after = _seconds(envs)
    return Answer(reports, {key: after[key] - before[key] for key in after})


def _do(
    env: LanguageActionEnv, what: Episode | Step | Lost, pictures: np.ndarray, tells_state: bool
) -> Report:
    """Take up an episode; or say a word, and begin another episode if the word ended this one."""

    def begin(episode: Episode, picture: np.ndarray) -> Told:
        observation, _ = env.reset(seed=episode.seed, options=episode.replay_options)
        return told(observation, picture)

    def told(observation: Observation, picture: np.ndarray) -> Told:
        facts = _put(env, observation, picture)
        return facts, env.privileged_state() if tells_state else None

    if isinstance(what, Episode):
        seen = begin(what, pictures[0])
        return Report(seen, env.digest())
    if isinstance(what, Lost):
        fresh = begin(what.following, pictures[1]) if what.following is not None else None
        return Report(None, b"", (0.0, False, True, LOST), fresh)
    observation, reward, terminated, truncated, info = env.step(what.action)
    after, fresh = told(observation, pictures[0]), None
    if what.following is not None and (terminated or truncated):
        fresh = begin(what.following, pictures[1])
    return Report(after, env.digest(), (reward, terminated, truncated, info), fresh)


def _put(env: LanguageActionEnv, observation: Observation, picture: np.ndarray) -> np.ndarray:
    """Write the frame into shared memory; the facts go through the pipe."""
    single = Observations.from_env(observation, [fact.name for fact in env.facts])
    picture[:] = single.frames
    return single.facts


def _seconds(envs: Mapping[int, LanguageActionEnv]) -> dict[str, float]:
    """Seconds that all environments together have spent so far, by activity."""
    activities = next(iter(envs.values())).seconds
    return {key: sum(env.seconds[key] for env in envs.values()) for key in activities}


def _watch_parent(with_thread: bool) -> None:
    """End this process when its parent ends, and if allowed with the thread that started it."""
    parent = mp.parent_process()
    assert parent is not None and parent.pid is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if with_thread:  # the kernel sees to it even if the watch cannot run
        end_with_parent(signal.SIGKILL, parent.pid)
