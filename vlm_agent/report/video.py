"""Pictures of episodes: what the robot sees and what it says.

An episode is its seed and its words, so it is played again here, in any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm_agent.common.errors import UserError
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode, load_episode, replay
from vlm_agent.world.pool.probe import replays

SIDE = 336
"""Side of each of the two pictures, in pixels."""

BAR = 40
"""Height of the line of text below them."""


def film_episode(episode_path: Path, output: Path) -> None:
    """Write an MP4: the policy's view on the left, the scene on the right, the words below.

    Where nobody but the policy sees the scene, its view is all there is.

    Args:
        episode_path: What :func:`vlm_agent.world.episode.save_episode` wrote.
        output: The MP4 to write.

    Raises:
        UserError: There is no episode, or its world does not replay.
    """
    episode, config, words = load_episode(episode_path)
    writer = None
    for image in _pictures(episode, config, words):
        if writer is None:
            writer = imageio_ffmpeg.write_frames(str(output), image.size, fps=5, macro_block_size=8)
            writer.send(None)
        writer.send(np.ascontiguousarray(image))
    assert writer is not None, "an episode has a beginning"
    writer.close()


def episode_strip(
    episode: Episode, config: EnvConfig, words: tuple[str, ...], count: int, output: Path
) -> None:
    """Write a PNG with ``count`` moments of an episode, evenly spread, in two columns."""
    pictures = list(_pictures(episode, config, words))
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, count).round().astype(int)]
    width, height = chosen[0].size
    rows = -(-count // 2)
    sheet = Image.new("RGB", (2 * width + 8, rows * (height + 8) - 8), "white")
    for i, picture in enumerate(chosen):
        sheet.paste(picture, ((i % 2) * (width + 8), (i // 2) * (height + 8)))
    sheet.quantize(128).save(output, optimize=True)


def _pictures(episode: Episode, config: EnvConfig, words: tuple[str, ...]) -> Iterator[Image.Image]:
    """One picture per word, with the word said on what is seen, and one of the end."""
    env = LanguageActionEnv(config, history=1)
    if not replays(env):
        env.close()
        raise UserError("this world does not replay: its episodes cannot be shown again")
    spectator = env.world.spectator(SIDE)
    said = [*(words[action] for action in episode.actions), None]
    try:
        for step, (observation, word) in enumerate(zip(replay(env, episode), said, strict=True)):
            text = f"{step:>3}  “{word}”" if word else f"{step:>3}  end"
            scene = None if spectator is None else spectator.frame()
            yield _compose(observation["image"], scene, text)
    finally:
        if spectator is not None:
            spectator.close()
        env.close()


def _compose(seen: np.ndarray, scene: np.ndarray | None, text: str) -> Image.Image:
    width = SIDE if scene is None else 2 * SIDE
    image = Image.new("RGB", (width, SIDE + BAR), "black")
    image.paste(Image.fromarray(seen).resize((SIDE, SIDE), Image.Resampling.NEAREST), (0, 0))
    if scene is not None:
        image.paste(Image.fromarray(scene), (SIDE, 0))
    font = ImageFont.load_default(24)
    ImageDraw.Draw(image).text((12, SIDE + 5), text, fill="white", font=font)
    return image
