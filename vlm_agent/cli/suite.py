"""``vlm-agent suite``: a policy on the same episodes in many changed scenes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vlm_agent.cli.measure import POLICY_HELP, add_episode_options
from vlm_agent.cli.options import check_writable
from vlm_agent.common.errors import UserError
from vlm_agent.common.whole import write_whole

USUAL = "can"
PICTURES = (".png", ".svg", ".pdf")


def add_suite(commands: Any) -> None:
    parser = commands.add_parser(
        "suite",
        help="measure what a policy does where the scene is another one",
        description="Play the same episodes in each split of a suite (other colours, light, "
        "cameras, sentences, objects, arms) and report success with its 95 % Wilson interval. "
        "With --json FILE it goes on where it was stopped, split by split.",
    )
    parser.add_argument("--policy", required=True, metavar="NAME", help=POLICY_HELP)
    parser.add_argument(
        "--config",
        default=USUAL,
        metavar="SUITE",
        help="a suite's file, or the name of one that ships: can, pick, scaled (default: can)",
    )
    parser.add_argument("--splits", nargs="+", default=[], metavar="SPLIT", help="only these")
    add_episode_options(parser, episodes=200, split="test", num_envs=16)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the rows here")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw them here")
    parser.set_defaults(run=_suite, takes_recipe=False)


def _suite(arguments: argparse.Namespace, _: list[str]) -> int:
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.evaluation.splits import find_suite
    from vlm_agent.evaluation.suite import Played, measure_suite, read_rows, superseded
    from vlm_agent.report.suite import plot_suite, suite_table

    disable_progress_bar()  # of loading weights
    check_writable(arguments.json)
    check_writable(arguments.chart, "--chart")
    if arguments.chart and arguments.chart.suffix not in PICTURES:
        raise UserError(f"--chart {arguments.chart}: expected a name with {' or '.join(PICTURES)}")
    suite = find_suite(arguments.config)
    known = read_rows(arguments.json) if arguments.json else []
    how = Played(
        arguments.num_eval_episodes,
        arguments.greedy,
        arguments.split,
        arguments.seed,
        arguments.num_envs,
    )
    number = len(set(arguments.splits or suite.splits))
    rows: list[dict[str, Any]] = []
    with tqdm(total=number * how.count, unit="episode") as bar:

        def count(split: str) -> None:
            bar.set_description(split, refresh=False)
            bar.update()

        for row in measure_suite(
            suite,
            arguments.policy,
            how,
            names=arguments.splits,
            known=known,
            trust_modules=arguments.trust_modules,
            on_episode=count,
        ):
            rows.append(row)
            bar.n = len(rows) * how.count  # also where a row was there
            if arguments.json and row not in known:
                known = [earlier for earlier in known if not superseded(earlier, row)] + [row]
                text = json.dumps(known, indent=1, ensure_ascii=False)
                write_whole(arguments.json, text + "\n")
    print(suite_table(rows))
    if arguments.chart:
        plot_suite({arguments.policy: rows}, arguments.chart)
    return 0
