"""``vlm-agent init``, ``demos``, ``results`` and other studies: what makes files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vlm_agent.cli.options import check_new, check_writable
from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.shipped import copy_editable


def add_init(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="put recipes, prompts and accelerate's configurations here, to edit",
        description="Copy the recipes, prompts and accelerate's configurations that come with the "
        "package into a folder. What is there already stays as it is.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where to (default: the current folder)",
    )
    parser.set_defaults(run=_init, takes_recipe=False)


def _init(arguments: argparse.Namespace, _: list[str]) -> int:
    folder = arguments.folder
    try:
        written, kept = copy_editable(folder)
    except OSError as error:
        raise UserError(f"init {folder}: cannot be written: {error}") from None
    for path in written:
        print(f"wrote {path}")
    for path in kept:
        print(f"kept {path}: it was there already")
    return 0


def add_demos(commands: Any) -> None:
    parser = commands.add_parser(
        "demos",
        help="let the scripted expert demonstrate a task",
        description="Let the scripted expert play a recipe's demonstrations, in parallel, and "
        "store them as a Hugging Face dataset. Goes on where it was stopped. "
        "Takes --config RECIPE and any --key value override.",
    )
    parser.add_argument(
        "--lerobot", type=Path, metavar="FOLDER", help="write them as a LeRobotDataset (v3), too"
    )
    parser.set_defaults(run=_demos, takes_recipe=True)


def _demos(arguments: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.recipe.command_line import load_recipe

    recipe = load_recipe(rest, prog="vlm-agent demos")

    from vlm_agent.demonstrations.dataset import collect_demonstrations

    output = arguments.lerobot
    if output is not None:
        check_new(output, "--lerobot")
    print(f"wrote {collect_demonstrations(recipe)}")
    if output is not None:
        from vlm_agent.demonstrations.lerobot import export_lerobot

        print(f"wrote {output}: {export_lerobot(recipe, output)} episodes")
    return 0


def add_results(commands: Any) -> None:
    parser = commands.add_parser(
        "results",
        help="from nothing to the table of results in docs/results.md",
        description="Run every stage of the study that has not been run (demonstrations, warm "
        "starts, PPO, test evaluations), then write the JSON file, the table and the curves.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=Path("recipes/results/results.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--curves", type=Path, default=Path("docs/pictures/learning.png"))
    parser.add_argument(
        "--present", action="store_true", help="run nothing, write what has been evaluated so far"
    )
    parser.set_defaults(run=_results, takes_recipe=False)


def _results(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.report.results import plot_learning_curves, write_page
    from vlm_agent.studies.results import run_study, write_results
    from vlm_agent.studies.study import Study

    check_writable(arguments.json)
    if arguments.present:
        write_results(Study(arguments.output_dir), arguments.json)
    else:
        run_study(arguments.output_dir, arguments.json)
    results = json.loads(arguments.json.read_text())
    write_page(results, arguments.page)
    print(f"wrote {arguments.json} and {arguments.page}")
    if results["curves"]:
        plot_learning_curves(results, arguments.curves)
        print(f"wrote {arguments.curves}")
    return 0


def add_quick_study(commands: Any) -> None:
    parser = commands.add_parser(
        "quick_study",
        help="measure what the quick recipe brings",
        description="Run the quick recipe with five seeds, and write how much it helps. Goes on "
        "where it was stopped.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=Path("recipes/results/quick_study.json"))
    parser.set_defaults(run=_quick_study, takes_recipe=False)


def _quick_study(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.studies.quick import study

    check_writable(arguments.json)
    found = study(arguments.output_dir, arguments.json)
    gain, low, high = (100 * found[key] for key in ("mean_gain", "ci95_low", "ci95_high"))
    print(f"gain {gain:+.1f} points (95 %: {low:+.1f} to {high:+.1f}), p = {found['p_value']:.2g}")
    return 0


def add_worlds(commands: Any) -> None:
    parser = commands.add_parser(
        "worlds",
        help="train and measure in the Gymnasium worlds that come with the package",
        description="Run the recipes of MiniGrid and Fetch and measure what comes of them on test "
        "episodes. Goes on where it was stopped.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="minigrid, fetch, or recipes of theirs, such as fetch_push (default: all)",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=Path("recipes/results"), metavar="FOLDER")
    parser.set_defaults(run=_worlds, takes_recipe=False)


def _worlds(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.studies.worlds import WORLDS, run_worlds

    known = [*WORLDS, *(world.recipe for worlds in WORLDS.values() for world in worlds)]
    for name in arguments.names:
        if name not in known:
            raise UserError(unknown_name("world", name, known))
    names = arguments.names or tuple(WORLDS)
    for path in run_worlds(arguments.output_dir, arguments.results, names):
        print(f"wrote {path}")
    return 0


def add_group_study(commands: Any) -> None:
    parser = commands.add_parser(
        "group_study",
        help="compare GRPO with PPO on a sparse reward",
        description="Run recipes/group.yaml and recipes/group_ppo.yaml, play the test episodes "
        "with the start and both ends, and write what was gained. Goes on where it was stopped.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=Path("recipes/results/group.json"))
    parser.set_defaults(run=_group_study, takes_recipe=False)


def _group_study(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.studies.groups import study

    check_writable(arguments.json)
    for row in study(arguments.output_dir, arguments.json)["comparisons"]:
        interval = f"{row['ci95_low']:+.3f} to {row['ci95_high']:+.3f}"
        names = f"{row['policy']} over {row['over']}"
        print(f"{names:<30}{row['gain']:+.3f} ({interval}), p = {row['p_value']:.2g}")
    return 0


def add_generalisation(commands: Any) -> None:
    parser = commands.add_parser(
        "generalisation",
        help="train and measure policies for scenes that are not those of their training",
        description="Run imitation in scenes that change, PPO, GRPO and more imitation from it, "
        "and have all of them play the suites. Goes on where it was stopped.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=Path("recipes/results/generalisation.json"))
    parser.add_argument(
        "--stages",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="run only these, as 'PPO: general_can_0'; other commands may run others meanwhile",
    )
    parser.add_argument(
        "--present", action="store_true", help="run nothing, write what has been measured so far"
    )
    parser.add_argument("--page", type=Path, default=Path("docs/generalisation.md"))
    parser.add_argument("--chart", type=Path, default=Path("docs/pictures/generalisation.png"))
    parser.set_defaults(run=_generalisation, takes_recipe=False)


def _generalisation(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.report.generalisation import write_page
    from vlm_agent.studies.generalisation import (
        Generalisation,
        run_generalisation,
        write_generalisation,
    )

    check_writable(arguments.json)
    if arguments.present:
        write_generalisation(Generalisation(arguments.output_dir), arguments.json)
    else:
        run_generalisation(arguments.output_dir, arguments.json, arguments.stages)
    write_page(json.loads(arguments.json.read_text()), arguments.page, arguments.chart)
    print(f"wrote {arguments.json}, {arguments.page} and {arguments.chart}")
    return 0


def add_pretrained(commands: Any) -> None:
    parser = commands.add_parser(
        "pretrained",
        help="what a pretrained language model is worth: the road with and without it",
        description="Make a SmolVLM with SmolLM2's language model and one of random weights, "
        "train both on Lift, and compare them on test episodes. Goes on where it was stopped.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=Path("recipes/results/pretrained.json"))
    parser.add_argument(
        "--forms", nargs="+", default=[], metavar="FORM", help="run only these, as 'random'"
    )
    parser.add_argument(
        "--make_models", type=Path, metavar="FOLDER", help="make both models there, and no more"
    )
    parser.set_defaults(run=_pretrained, takes_recipe=False)


def _pretrained(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.studies.pretrained import run_pretrained
    from vlm_agent.studies.smolvlm import make_models

    if arguments.make_models:
        make_models(arguments.make_models)
        return 0
    check_writable(arguments.json)
    for row in run_pretrained(arguments.output_dir, arguments.json, arguments.forms)["rows"]:
        low, high = row["ci95_low"], row["ci95_high"]
        name = f"{row['model']}: {row['policy']}"
        print(f"{name:<36}{row['success_rate']:.3f} ({low:.2f}-{high:.2f})")
    return 0
