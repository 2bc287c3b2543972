"""A picture of what the six directions mean: in the hand's picture, and in the scene."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv

SIDE = 168
BAR = 26
TIMES = 4
"""How often each word is said."""


def picture_directions(output: Path, config: EnvConfig) -> None:
    """Write a PNG: the start, then each direction said :data:`TIMES` times from the same start.

    Args:
        output: The PNG.
        config: The scene; above is what the hand sees, below what a spectator sees who faces the
            robot, so that the robot's left is the spectator's right.
    """
    env = LanguageActionEnv(config, frame_size=SIDE)
    spectator = env.world.spectator(SIDE)
    assert spectator is not None, "a robot is seen from the front"
    words = [None, *DEFAULT_WORDS[:6]]
    sheet = Image.new("RGB", (len(words) * (SIDE + 4) - 4, 2 * SIDE + BAR), "black")
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for column, word in enumerate(words):
        observation, _ = env.reset(seed=0)
        if word is not None:
            for _ in range(TIMES):
                observation, *_ = env.step(env.vocabulary.index(word))
        left = column * (SIDE + 4)
        sheet.paste(Image.fromarray(observation["image"]), (left, 0))
        sheet.paste(Image.fromarray(spectator.frame()), (left, SIDE))
        brush.text((left + 6, 2 * SIDE + 2), word or "start", fill="white", font=font)
    spectator.close()
    env.close()
    sheet.quantize(128).save(output, optimize=True)
