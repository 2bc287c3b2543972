"""Training commands: ``vlm-agent train`` and ``sft``, and what ``accelerate launch`` runs.

Environment workers import the main module again when they start, so everything heavy is imported
when a command is run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_agent.common.lifetime import end_with_launcher

if TYPE_CHECKING:
    from vlm_agent.recipe.recipe import Recipe


def train(argv: Sequence[str] | None = None, prog: str = "vlm-agent train") -> int:
    """PPO: read and check the recipe, train, and say where everything lies."""
    end_with_launcher()

    from vlm_agent.recipe.command_line import load_recipe

    recipe = load_recipe(argv, prog)

    from vlm_agent.ppo.run import run_training

    _run(run_training, recipe)
    return 0


def sft(argv: Sequence[str] | None = None, prog: str = "vlm-agent sft") -> int:
    """Warm start: read and check the recipe, learn from the expert, say where everything lies."""
    end_with_launcher()

    from vlm_agent.recipe.command_line import load_recipe

    recipe = load_recipe(argv, prog)

    from vlm_agent.imitation.run import run_imitation

    _run(run_imitation, recipe)
    return 0


def _run(learn: Callable[[Recipe], None], recipe: Recipe) -> None:
    """Learn, and put what came of it on the hub, if the recipe says so."""
    is_main = os.environ.get("RANK", "0") == "0"
    if recipe.tracking.push_to_hub is None or not is_main:
        learn(recipe)
        return

    from vlm_agent.sharing.publish import check_push_to_hub, push_run

    check_push_to_hub(recipe)
    learn(recipe)
    print(f"pushed to {push_run(recipe)}")


def add_train(commands: Any) -> None:
    _add(commands, "train", "PPO as a recipe says, in one process", train)


def add_sft(commands: Any) -> None:
    _add(commands, "sft", "the warm start as a recipe says, in one process", sft)


def add_road(commands: Any) -> None:
    parser = commands.add_parser(
        "road",
        help="all that a recipe of PPO needs: demonstrations, warm start, PPO, test episodes",
        description="Run the warm start that a recipe begins with (init_from: "
        "checkpoints/NAME_final, if NAME.yaml lies beside it), then the recipe, then test "
        "episodes with the best policy, on all GPUs. Goes on where it was stopped. Takes any "
        "--key value override, which is for both recipes.",
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the recipe")
    parser.set_defaults(run=_road, takes_recipe=True)


def _road(arguments: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.evaluation.evaluate import read_result
    from vlm_agent.studies.road import run_road

    path = run_road(arguments.config, rest)
    result = read_result(path)
    low, high = result["ci95_low"], result["ci95_high"]
    print(f"success {result['success_rate']:.3f} ({low:.2f}-{high:.2f}) on test episodes: {path}")
    return 0


def _add(commands: Any, name: str, what: str, main: Callable[..., int]) -> None:
    parser = commands.add_parser(
        name,
        add_help=False,  # --help lists every key of a recipe
        help=what,
    )

    def run(_: argparse.Namespace, rest: list[str]) -> int:
        # As `accelerate launch --num_cpu_threads_per_process` does; read when torch is imported.
        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        return main(rest)

    parser.set_defaults(run=run, takes_recipe=True)
