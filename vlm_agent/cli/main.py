"""The ``vlm-agent`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from vlm_agent import __version__
from vlm_agent.cli.entry import run_command
from vlm_agent.cli.learn import add_road, add_sft, add_train
from vlm_agent.cli.look import add_keys, add_prompt, add_show
from vlm_agent.cli.machine import add_bench, add_doctor
from vlm_agent.cli.make import (
    add_demos,
    add_generalisation,
    add_group_study,
    add_init,
    add_pretrained,
    add_quick_study,
    add_results,
    add_worlds,
)
from vlm_agent.cli.measure import add_compare, add_eval, add_suite
from vlm_agent.cli.pages import add_play, add_report, add_runs
from vlm_agent.cli.plan import add_plan
from vlm_agent.cli.policies import add_merge, add_push, add_seal, add_space

EPILOG = """
train in one process:   vlm-agent train --config quick
on several GPUs:        accelerate launch --config_file accelerate_configs/multi_gpu.yaml \\
                            -m vlm_agent.train --config recipes/full.yaml
"""

COMMANDS = (
    add_init,
    add_train,
    add_sft,
    add_road,
    add_plan,
    add_demos,
    add_eval,
    add_compare,
    add_suite,
    add_merge,
    add_seal,
    add_push,
    add_space,
    add_keys,
    add_prompt,
    add_runs,
    add_report,
    add_play,
    add_show,
    add_bench,
    add_results,
    add_quick_study,
    add_worlds,
    add_group_study,
    add_generalisation,
    add_pretrained,
    add_doctor,
)


def make_parser() -> argparse.ArgumentParser:
    """What reads a command line; what it leaves is for the recipe, where a command takes one."""
    parser = argparse.ArgumentParser(
        prog="vlm-agent",
        description="A vision-language model that moves a robot arm with words.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.takes_recipe:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run: Callable[[argparse.Namespace, list[str]], int] = arguments.run
    return run(arguments, rest)


def run() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(main))


if __name__ == "__main__":
    run()
