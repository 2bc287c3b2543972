"""``vlm-agent runs``, ``report`` and ``play``: to look at what there is, and at what it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_agent.cli.options import add_trust, check_writable, natural
from vlm_agent.common.errors import UserError

if TYPE_CHECKING:
    from vlm_agent.play.session import Table
    from vlm_agent.policy.policy import VLMPolicy
    from vlm_agent.recipe.recipe import Recipe
    from vlm_agent.report.mind import Mind
    from vlm_agent.world.config import EnvConfig


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
    write_report(arguments.runs, output, minds, arguments.episodes, arguments.trust_modules)
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


def add_runs(commands: Any) -> None:
    parser = commands.add_parser(
        "runs",
        help="list runs with their state and success",
        description="List the runs below a folder, the one that was last changed first.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(), help="what was output_dir (default: .)"
    )
    parser.set_defaults(run=_runs, takes_recipe=False)


def _runs(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.report.listing import list_runs, runs_table

    print(runs_table(list_runs(arguments.folder)))
    return 0


def add_play(commands: Any) -> None:
    parser = commands.add_parser(
        "play",
        help="a page on which you see what the robot sees, and say words to it",
        description="Serve a page on this machine alone: the robot's camera, every word's "
        "probability, buttons and keys to say words, the policy to go on whenever you like, the "
        "prompt to be edited, and episodes to be saved as demonstrations. Settings of the scene "
        "can be changed: --task Lift, ...",
    )
    parser.add_argument(
        "--policy", default="starter", metavar="NAME", help="a policy (default: starter)"
    )
    parser.add_argument(
        "--port", type=natural, default=7860, help="default: 7860; 0 for a free one"
    )
    parser.add_argument(
        "--demonstrations",
        type=Path,
        default=Path("demonstrations/play"),
        metavar="FOLDER",
        help="where episodes are saved (default: demonstrations/play)",
    )
    parser.add_argument(
        "--public",
        metavar="HOST",
        help="for everybody who asks for this host's name, from any address; nothing is saved",
    )
    add_trust(parser)
    parser.set_defaults(run=_play, takes_recipe=True)


def _play(arguments: argparse.Namespace, rest: list[str]) -> int:
    from dataclasses import replace

    from vlm_agent.play.server import HERE, Door, make_app, make_server

    door = HERE if arguments.public is None else Door.public(arguments.public)
    port = door.open_port(arguments.port)
    table = _table(arguments, rest)
    if arguments.public is not None:
        table = replace(table, recipe=None)
    app = make_app(table, f"{arguments.policy} in {table.config.name}", door)
    number = port.getsockname()[1]
    where = f"http://127.0.0.1:{number}" if door is HERE else f"{door.hosts[0]}, port {number},"
    print(f"open {where} in a browser; Ctrl-C ends it", flush=True)
    if table.recipe is None and door is HERE:
        print("(nothing can be saved: this policy's recipe does not make demonstrations here)")
    make_server(app).run(sockets=[port])
    return 0


def _table(arguments: argparse.Namespace, rest: list[str]) -> Table:
    """What the page's sessions share."""
    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.demonstrations.folder import PERSON, DemonstrationsFolder
    from vlm_agent.evaluation.agents import load_agent
    from vlm_agent.play.session import Table
    from vlm_agent.policy.config import TINY
    from vlm_agent.policy.places import policy_folder
    from vlm_agent.ppo.critic import load_actor_critic
    from vlm_agent.recipe.command_line import override_env
    from vlm_agent.runs.reporting import mind_of

    disable_progress_bar()  # of loading weights
    trust = arguments.trust_modules
    agent = load_agent(arguments.policy, "none", lambda env: override_env(env, rest), trust)
    if agent.policy is None:
        raise UserError(f"--policy {arguments.policy}: nobody can ask it; name a policy")
    folder = None if arguments.policy == TINY else policy_folder(arguments.policy)

    def make_mind(policy: VLMPolicy) -> Mind:
        return mind_of(policy, folder and load_actor_critic(folder, policy))

    recipe = _recipe_of(agent.policy, agent.env, arguments.demonstrations)
    if recipe is not None and DemonstrationsFolder(recipe).exists:
        DemonstrationsFolder(recipe).prepare(PERSON)  # now, and not when something is to be saved
    return Table(agent.policy, agent.env, agent.gamma, recipe, make_mind)


def _recipe_of(policy: VLMPolicy, env: EnvConfig, folder: Path) -> Recipe | None:
    """The recipe of demonstrations that are saved for a policy; ``None`` if there can be none."""
    from dataclasses import asdict

    from vlm_agent.recipe.keys import key_types
    from vlm_agent.recipe.recipe import make_recipe

    known = {key: value for key, value in policy.recipe.items() if key in key_types()}
    own = {"demonstrations": str(folder), "resume_from": None, "init_from": None}
    try:
        recipe = make_recipe({**known, **asdict(env), **own})
    except UserError:  # its template is elsewhere
        return None
    return recipe if recipe.template.fact_names == policy.facts else None
