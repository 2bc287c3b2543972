"""``vlm-agent report``: what came of runs, as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_agent.cli.options import add_trust, check_writable, natural
from vlm_agent.common.errors import UserError

if TYPE_CHECKING:
    from vlm_agent.report.mind import Mind


def add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="show one run or several as a page: curves, evaluations, episodes word by word",
        description="Write one HTML file that needs no network: curves, evaluations with "
        "intervals, times, settings, and episodes of the last evaluation, played again, in which "
        "the policy says how probable each word was.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder runs/NAME")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="by default report.html in the first run"
    )
    parser.add_argument(
        "--episodes", type=natural, default=12, metavar="N", help="of each run (default: 12)"
    )
    add_trust(parser)
    parser.set_defaults(run=_report, takes_recipe=False)


def _report(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.report.html.records import RunRecord
    from vlm_agent.runs.reporting import write_report

    output = arguments.output or arguments.runs[0] / "report.html"
    records = [RunRecord.load(folder) for folder in arguments.runs]
    names = [record.name for record in records]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"report: two of the runs have one name, {twice[0]!r}")
    check_writable(output, "--output")
    minds = {}
    for record in records if arguments.episodes else []:
        mind = _mind(record, arguments.trust_modules)
        if mind is not None:
            minds[record.name] = mind
    write_report(arguments.runs, output, minds, arguments.episodes)
    print(f"wrote {output}")
    return 0


def _mind(record: Any, trust_modules: bool) -> Mind | None:
    """The policy of a run's last evaluation, if it is still there."""
    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.ppo.critic import load_actor_critic
    from vlm_agent.runs.checkpoints import load_policy
    from vlm_agent.runs.reporting import mind_of, policy_of_evaluation

    if not record.evaluations:
        return None
    folder = policy_of_evaluation(record, record.evaluations[-1]["timesteps"])
    if folder is None:
        return None
    disable_progress_bar()  # of loading weights
    policy, _, _ = load_policy(folder, trust_modules)
    return mind_of(policy, load_actor_critic(folder, policy))
