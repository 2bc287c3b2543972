"""``vlm-agent bench``: choose a benchmark, run it, show a table, write a JSON file."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError


@dataclass(frozen=True)
class Option:
    """An option of a benchmark: a number within bounds, or a name."""

    default: int | str
    help: str
    least: int = 1
    most: int = 10**9
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark compares, and what its ``measure`` takes."""

    description: str
    options: Mapping[str, Option]
    room: str = "vlm_agent.bench"


WORLD = "vlm_agent.bench.world"


def _robot(description: str, words: int) -> Benchmark:
    options = {
        "task": Option("PickPlaceCan", "robosuite task"),
        "robot": Option("Panda", "robosuite arm"),
        "frame_size": Option(128, "pixels", 28, 640),
        "words": Option(words, "how many"),
    }
    return Benchmark(description, options, WORLD)


def _model(description: str, rounds: int, **others: Option) -> Benchmark:
    options = {
        "arch": Option("tiny", "random weights", choices=("tiny", "deep", "qwen2-vl-2b")),
        "device": Option("cpu", "where", choices=("cpu", "cuda")),
        "vocabulary": Option(151_936, "tokens of the vocabulary; the default is Qwen2-VL's", 1000),
        "batch_size": Option(16, "observations at once"),
        "frame_size": Option(0, "pixels, 28 or more; 0 for what suits the architecture", 0, 640),
        "rounds": Option(rounds, "how often each contender has its turn"),
    }
    return Benchmark(description, {**options, **others})


BENCHMARKS: dict[str, Benchmark] = {
    "camera": _robot("a frame: stock robosuite against camera: exact and camera: fast", 240),
    "env": _robot("a word and its frame: stock robosuite, and bare physics, against ours", 240),
    "control": _robot(
        "the scripted expert with the controller at 100 Hz and at stock 500 Hz", 3000
    ),
    "looks": Benchmark(
        "a word and its frame: the usual scene, and one of which everything is drawn anew",
        {
            "frame_size": Option(112, "pixels", 28, 640),
            "words": Option(1200, "how many"),
        },
        WORLD,
    ),
    "pool": _robot("two workers against one, and rollouts with the tiny policy", 180),
    "soak": _robot("a worker's memory and open files after a tenth of the words and later", 20_000),
    "scoring": _model(
        "the policy's scores: a bare backbone, eight sequences a frame, generate, and each prompt "
        "as a whole, against ours",
        15,
    ),
    "update": _model(
        "four epochs of LoRA: vision and whole-vocabulary scores of all positions, each prompt as "
        "a whole, and all layers in each epoch, against ours",
        3,
        samples=Option(64, "of the rollout"),
    ),
    "loop": Benchmark(
        "a whole iteration of PPO as it is usually written, one process, and rollouts and updates "
        "in turn, against ours",
        {
            "num_envs": Option(4, "environments per process"),
            "rollout_steps": Option(32, "words per environment and iteration"),
            "rounds": Option(3, "iterations of each contender"),
        },
    ),
    "play": Benchmark(
        "a word in the bare world against the page's answer to it",
        {"words": Option(100, "how many", 20)},
    ),
}
"""Name (of the module too) -> benchmark."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``vlm-agent bench``."""
    names = parser.add_subparsers(title="benchmarks", metavar="NAME", dest="name", required=True)
    for name, benchmark in BENCHMARKS.items():
        one = names.add_parser(
            name, help=benchmark.description, description=f"Compare {benchmark.description}."
        )
        for key, option in benchmark.options.items():
            one.add_argument(
                f"--{key}",
                type=type(option.default),
                default=option.default,
                choices=option.choices,
                help=f"{option.help} (default: {option.default})",
            )
        one.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen benchmark; its figures, a flat object.

    Raises:
        UserError: A number is out of range, there is no such task or robot, or no such device.
    """
    settings: dict[str, Any] = {}
    for key, option in BENCHMARKS[arguments.name].options.items():
        settings[key] = value = getattr(arguments, key)
        if isinstance(value, int) and not option.least <= value <= option.most:
            limit = f" to {option.most}" if option.most < 10**9 else " or more"
            raise UserError(f"--{key} {value}: expected {option.least}{limit}")
    module = importlib.import_module(f"{BENCHMARKS[arguments.name].room}.{arguments.name}")
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
