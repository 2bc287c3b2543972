"""``vlm-agent bench``: choose a benchmark, run it, show a table, write a JSON file."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_agent.errors import UserError

BENCHMARKS: dict[str, tuple[str, int]] = {
    "camera": ("a frame: stock robosuite against camera: exact and camera: fast", 240),
    "env": ("a word and its frame: stock robosuite, and bare physics, against ours", 240),
    "control": ("the scripted expert with the controller at 100 Hz and at stock 500 Hz", 3000),
    "pool": ("two workers against one, and rollouts with the tiny policy", 180),
    "soak": ("a worker's memory and open files after a tenth of the words and later", 20_000),
}
"""Name (of the module too) -> what is compared, and for how many words."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``vlm-agent bench``."""
    names = parser.add_subparsers(title="benchmarks", metavar="NAME", dest="name", required=True)
    for name, (description, words) in BENCHMARKS.items():
        one = names.add_parser(name, help=description, description=f"Compare {description}.")
        one.add_argument("--task", default="PickPlaceCan", help="(default: PickPlaceCan)")
        one.add_argument("--robot", default="Panda", help="(default: Panda)")
        one.add_argument("--frame_size", type=int, default=128, help="pixels (default: 128)")
        one.add_argument("--words", type=int, default=words, help=f"how many (default: {words})")
        one.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen benchmark; its figures, a flat object.

    Raises:
        UserError: A number is out of range, or there is no such task or robot.
    """
    if arguments.words < 1:
        raise UserError(f"--words {arguments.words}: expected at least 1")
    if not 28 <= arguments.frame_size <= 640:
        raise UserError(f"--frame_size {arguments.frame_size}: expected 28 to 640")
    module = importlib.import_module(f"vlm_agent.bench.{arguments.name}")
    settings = {key: getattr(arguments, key) for key in ("task", "robot", "frame_size", "words")}
    figures: dict[str, Any] = {**settings, **module.measure(**settings)}
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def table(figures: Mapping[str, Any]) -> str:
    """Figures as two columns."""
    width = max(map(len, figures))
    shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in figures.items()}
    return "\n".join(f"{key:<{width}}  {value}" for key, value in shown.items())
