"""Pictures of episodes: what the robot sees and what it says.

An episode is its seed and its words, so it is played again here, in any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm_agent.common.errors import UserError
from vlm_agent.report.mind import Mind
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode, replay
from vlm_agent.world.facts import facts_named
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.probe import replays
from vlm_agent.world.registry import declare

BAR = 40
"""Height of the line of text below the pictures."""


@dataclass(frozen=True)
class Style:
    """How an episode is shown.

    Attributes:
        side: Of each picture, in pixels.
        camera: Beside the policy's view; the world's usual one by default.
        fps: Words per second of a film.
        mind: Whose probabilities stand beside the pictures, if anybody's.
    """

    side: int = 336
    camera: str | None = None
    fps: int = 5
    mind: Mind | None = None


def film_episode(
    episode: Episode,
    config: EnvConfig,
    words: Sequence[str],
    output: Path,
    style: Style | None = None,
) -> None:
    """Write an MP4 or a GIF: the policy's view on the left, the scene on the right, words below.

    Where nobody but the policy sees the scene, its view is all there is.

    Args:
        episode: The episode.
        config: The scene it was played in.
        words: What the actions are called.
        output: The file to write; its ending says which kind.
        style: How it looks.

    Raises:
        UserError: The world does not replay, or has no such camera.
    """
    style = style or Style()
    pictures = _pictures(episode, config, words, style)
    if output.suffix == ".gif":
        first, *others = [picture.quantize(128) for picture in pictures]
        pause = round(1000 / style.fps)
        first.save(output, save_all=True, append_images=others, duration=pause, loop=0)
        return
    writer = None
    for image in pictures:
        if writer is None:
            writer = imageio_ffmpeg.write_frames(
                str(output), image.size, fps=style.fps, macro_block_size=8
            )
            writer.send(None)
        writer.send(np.ascontiguousarray(image))
    assert writer is not None, "an episode has a beginning"
    writer.close()


def episode_strip(
    episode: Episode,
    config: EnvConfig,
    words: Sequence[str],
    count: int,
    output: Path,
    style: Style | None = None,
) -> None:
    """Write a PNG with ``count`` moments of an episode, evenly spread, in two columns."""
    pictures = list(_pictures(episode, config, words, style or Style()))
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, count).round().astype(int)]
    width, height = chosen[0].size
    rows = -(-count // 2)
    sheet = Image.new("RGB", (2 * width + 8, rows * (height + 8) - 8), "white")
    for i, picture in enumerate(chosen):
        sheet.paste(picture, ((i % 2) * (width + 8), (i // 2) * (height + 8)))
    sheet.quantize(128).save(output, optimize=True)


def _pictures(
    episode: Episode, config: EnvConfig, words: Sequence[str], style: Style
) -> Iterator[Image.Image]:
    """One picture per word, with the word said on what is seen, and one of the end."""
    mind = style.mind
    told = None if mind is None else facts_named(mind.facts, declare(config).facts)
    env = LanguageActionEnv(config, facts=told)
    if not replays(env):
        env.close()
        raise UserError("this world does not replay: its episodes cannot be shown again")
    said = [*(words[action] for action in episode.actions), None]
    spectator = None
    try:
        spectator = env.world.spectator(style.side, style.camera)
        for step, (observation, word) in enumerate(zip(replay(env, episode), said, strict=True)):
            seen = observation["image"]
            scene = None if spectator is None else spectator.frame()
            image = _compose(seen[-seen.shape[1] :], scene, _line(step, word), style.side)
            if mind is not None and mind.judge is not None:
                now = Observations.stack([Observations.from_env(observation, mind.facts)])
                states = env.privileged_state()[None]
                told_now = mind.judge(Observations(now.frames, now.facts, states))
                image = _with_bars(image, mind.words, told_now.probabilities[0], word)
            yield image
    finally:
        if spectator is not None:
            spectator.close()
        env.close()


def _line(step: int, word: str | None) -> str:
    return f"{step:>3}  “{word}”" if word else f"{step:>3}  end"


def _compose(seen: np.ndarray, scene: np.ndarray | None, text: str, side: int) -> Image.Image:
    width = side if scene is None else 2 * side
    image = Image.new("RGB", (width, side + BAR), "black")
    image.paste(Image.fromarray(seen).resize((side, side), Image.Resampling.NEAREST), (0, 0))
    if scene is not None:
        image.paste(Image.fromarray(scene), (side, 0))
    font = ImageFont.load_default(24)
    ImageDraw.Draw(image).text((12, side + 5), text, fill="white", font=font)
    return image


def _with_bars(
    image: Image.Image, words: Sequence[str], probabilities: np.ndarray, said: str | None
) -> Image.Image:
    """The same with the words' probabilities to the right; the one that is said stands out."""
    width, height = image.size
    name, length, edge = 150, 120, 10
    row = min(28.0, (height - 2 * edge) / len(words))
    wide = Image.new("RGB", (width + name + length + 3 * edge, height), "black")
    wide.paste(image, (0, 0))
    draw, font = ImageDraw.Draw(wide), ImageFont.load_default(max(8, int(0.6 * row)))
    for number, (word, probability) in enumerate(zip(words, probabilities, strict=True)):
        top = edge + number * row
        colour = "#ffd75f" if word == said else "#b9c0c8"
        draw.text((width + edge, top), word, fill=colour, font=font)
        left = width + edge + name
        draw.rectangle((left, top + 2, left + length, top + 0.7 * row), outline="#444b54")
        filled = left + float(probability) * length
        draw.rectangle((left, top + 2, filled, top + 0.7 * row), fill=colour)
    return wide
