"""Episodes played again from their seeds and words: what was seen, done and reached."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from vlm_agent.common.errors import UserError
from vlm_agent.common.processes import in_processes
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode
from vlm_agent.world.facts import facts_named
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.probe import replays
from vlm_agent.world.registry import declare

SIDE = 224
"""Side of each of the two pictures, in pixels."""

FPS = 5

SCENE_EVERY = 2
"""Words between two pictures of the scene: each takes longer than all the rest of a word."""


@dataclass(frozen=True)
class Replay:
    """An episode of T words, played again.

    Attributes:
        episode: Its seed and words.
        film: An MP4 with a frame for each of its T + 1 states: the policy's view, and beside it
            the scene, if somebody else sees that.
        observations: Of the T states that words were said in; with privileged states.
        rewards: float64 (T,).
        stages: The highest stage after each word.
        sentence: What was asked for.
    """

    episode: Episode
    film: bytes
    observations: Observations
    rewards: np.ndarray
    stages: tuple[str, ...]
    sentence: str


def replay_all(
    episodes: Sequence[Episode],
    config: EnvConfig,
    gamma: float,
    facts: Sequence[str],
    workers: int = 0,
) -> Iterator[Replay]:
    """Play episodes again, in order.

    Args:
        episodes: The episodes.
        config: The scene they were played in.
        gamma: The discount of its rewards.
        facts: Names of the facts that observations tell.
        workers: Processes; 0 for one per core.

    Raises:
        UserError: The world does not replay, or a process failed.
    """
    arguments = (config, gamma, tuple(facts))
    yield from in_processes(
        _replay, episodes, _start, arguments, workers=workers, what="playing episodes again"
    )


_env: LanguageActionEnv
_facts: tuple[str, ...]


def _start(config: EnvConfig, gamma: float, facts: tuple[str, ...]) -> None:
    global _env, _facts
    told = facts_named(facts, declare(config).facts)
    _env, _facts = LanguageActionEnv(config, gamma, facts=told), facts


def _replay(episode: Episode) -> Replay:
    if not replays(_env):
        raise UserError("this world does not replay: its episodes cannot be shown again")
    observation, _ = _env.reset(seed=episode.seed)
    spectator = _env.world.spectator(SIDE)
    pictures, seen, states, rewards, stages = [], [], [], [], []
    try:
        scene: np.ndarray | None = None
        for number, action in enumerate(episode.actions):
            if spectator is not None and number % SCENE_EVERY == 0:
                scene = spectator.frame()
            pictures.append(_beside(observation["image"], scene))
            seen.append(Observations.from_env(observation, _facts))
            states.append(_env.privileged_state())
            observation, reward, terminated, truncated, info = _env.step(action)
            rewards.append(reward)
            stages.append(str(info["stage"]))
            if terminated or truncated:
                break
        scene = None if spectator is None else spectator.frame()
        pictures.append(_beside(observation["image"], scene))
    finally:
        if spectator is not None:
            spectator.close()
    together = Observations.stack(seen)
    observations = Observations(together.frames, together.facts, np.stack(states))
    told = _env.world.spec.instructions.sentences
    sentence = told[_env.instruction] if told else ""
    film = film_of(pictures)
    return Replay(episode, film, observations, np.array(rewards), tuple(stages), sentence)


def _beside(seen: np.ndarray, scene: np.ndarray | None) -> Image.Image:
    """The policy's view, and to the right of it the scene."""
    wide = seen.shape[1]
    view = Image.fromarray(seen[-wide:])  # of a policy with a memory, the present picture
    image = Image.new("RGB", (SIDE if scene is None else 2 * SIDE, SIDE))
    image.paste(view.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (0, 0))
    if scene is not None:
        image.paste(Image.fromarray(scene), (SIDE, 0))
    return image


def film_of(pictures: Sequence[Image.Image]) -> bytes:
    """An MP4 of pictures of one size, every fifth of which can be gone to at once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        options = ["-crf", "26", "-g", "5", "-movflags", "+faststart"]
        size = pictures[0].size
        writer = imageio_ffmpeg.write_frames(
            str(path), size, fps=FPS, quality=None, macro_block_size=8, output_params=options
        )
        writer.send(None)
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
        writer.close()
        return path.read_bytes()
