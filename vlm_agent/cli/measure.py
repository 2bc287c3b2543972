"""``vlm-agent eval``, ``compare`` and ``suite``: how good policies are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vlm_agent.cli.options import add_trust, boolean, check_writable, count, natural
from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import SPLITS
from vlm_agent.common.whole import write_whole

POLICY_HELP = (
    "a policy's folder, its name on the hub, openai:MODEL for a model behind an OpenAI-compatible "
    "server, or one of: starter, beginner, warm_start, tiny, expert, random"
)

USUAL = "can"
PICTURES = (".png", ".svg", ".pdf")


def add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="measure a policy on fixed episodes",
        description="Play episodes with a policy and report success with its 95 % Wilson "
        "interval. The same call gives the same numbers. Settings of the scene can be changed: "
        "--controller_hz 500, --task Lift, ...",
    )
    parser.add_argument(
        "--policy", required=True, metavar="NAME", help=f"{POLICY_HELP}; human: you, on a page"
    )
    add_episode_options(parser)
    parser.add_argument(
        "--ablate",
        choices=("none", "image", "instruction", "prompt"),
        default="none",
        help="what the policy is not told: a grey image, another goal's instruction, or always the "
        "facts of the beginning",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument(
        "--port",
        type=natural,
        default=0,
        help="of the page of --policy human (default: any)",
    )
    parser.set_defaults(run=_eval, takes_recipe=True)


def add_episode_options(
    parser: argparse.ArgumentParser,
    episodes: int = 10,
    split: str = "validation",
    num_envs: int = 4,
) -> None:
    """Which episodes are played, and how; with these defaults."""
    parser.add_argument(
        "--num_eval_episodes",
        type=count,
        default=episodes,
        metavar="N",
        help=f"how many (default: {episodes})",
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default=split,
        help="whose episodes; a policy is chosen by validation and measured by test episodes "
        f"(default: {split})",
    )
    parser.add_argument("--seed", type=natural, default=0, help="decides the episodes (default: 0)")
    parser.add_argument(
        "--greedy",
        type=boolean,
        default=True,
        metavar="true|false",
        help="take the most probable word, else sample (default: true)",
    )
    parser.add_argument(
        "--base_url",
        metavar="URL",
        help="of the server of openai:MODEL (default: OPENAI_BASE_URL, or OpenAI's own)",
    )
    add_trust(parser)
    parser.add_argument(
        "--num_envs", type=count, default=num_envs, help=f"played at once (default: {num_envs})"
    )


def _eval(arguments: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.evaluation.compare import DETAILS

    check_writable(arguments.json)
    if arguments.policy == "human":
        result = _measure_human(arguments, rest)
    else:
        result = _measure(arguments.policy, arguments, rest, arguments.ablate)
    if arguments.json:
        write_whole(arguments.json, json.dumps(result, indent=1) + "\n")
    for key, value in result.items():
        if key not in DETAILS:
            print(f"{key:<20}{value:.3f}" if isinstance(value, float) else f"{key:<20}{value}")
    return 0


def _measure_human(arguments: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """What you reach: one episode after the other, on a page."""
    from vlm_agent.evaluation.agents import measure
    from vlm_agent.play.human import HumanAgent
    from vlm_agent.recipe.command_line import override_env
    from vlm_agent.world.config import EnvConfig

    if arguments.ablate != "none":
        raise UserError(f"--ablate {arguments.ablate}: close your eyes, and leave it out")
    episodes = arguments.num_eval_episodes
    with HumanAgent(override_env(EnvConfig(), rest), episodes, arguments.port) as human:
        print(f"open {human.url} in a browser and say {episodes} episodes' words", flush=True)
        what = (human.agent, episodes, arguments.seed, False, arguments.split, 1)
        return measure(*what).to_dict()


def _measure(
    name: str, arguments: argparse.Namespace, rest: list[str], ablate: str = "none"
) -> dict[str, Any]:
    """What a policy reaches on the episodes that the command line asks for."""
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.evaluation.agents import load_agent, measure
    from vlm_agent.recipe.command_line import override_env

    disable_progress_bar()  # of loading weights
    agent = load_agent(
        name,
        ablate,  # type: ignore[arg-type]
        lambda env: override_env(env, rest),
        arguments.trust_modules,
        arguments.base_url,
    )
    episodes = arguments.num_eval_episodes
    with tqdm(total=episodes, desc=f"evaluating {name}", unit="episode") as bar:
        return measure(
            agent,
            episodes,
            arguments.seed,
            arguments.greedy,
            arguments.split,
            arguments.num_envs,
            bar.update,
        ).to_dict()


def add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare policies on the same episodes",
        description="Play the same episodes with each policy and compare each with the first, by "
        "McNemar's exact test. A file that eval --json wrote is taken as it is.",
    )
    parser.add_argument("policies", nargs="+", metavar="NAME|FILE.json", help=POLICY_HELP)
    add_episode_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.set_defaults(run=_compare, takes_recipe=True)


def _compare(arguments: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.evaluation.compare import compare, comparison_table
    from vlm_agent.evaluation.evaluate import read_result

    check_writable(arguments.json)
    results = [
        read_result(Path(name)) if name.endswith(".json") else _measure(name, arguments, rest)
        for name in arguments.policies
    ]
    rows = compare(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(comparison_table(rows))
    return 0


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
            base_url=arguments.base_url,
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
