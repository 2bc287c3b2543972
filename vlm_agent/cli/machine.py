"""``vlm-agent bench`` and ``vlm-agent doctor``: what this machine can do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from vlm_agent.cli.options import check_writable
from vlm_agent.common.errors import UserError
from vlm_agent.world.render import doctor as rendering


def add_bench(commands: Any) -> None:
    from vlm_agent.bench.command import add_arguments

    parser = commands.add_parser(
        "bench",
        help="measure how fast the robot's world and the policy are",
        description="Each benchmark runs two things side by side and reports their ratio.",
    )
    add_arguments(parser)
    parser.set_defaults(run=_bench, takes_recipe=False)


def _bench(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.bench.command import run

    check_writable(arguments.json)
    run(arguments)
    return 0


def add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check that this machine can render",
        description="Render a picture in a child process with each backend that needs no display "
        "(EGL, OSMesa); say which is used, and what is missing if it does not work.",
    )
    parser.add_argument(
        "--install", action="store_true", help="install what is missing, if run as root"
    )
    parser.set_defaults(run=_doctor, takes_recipe=False)


def _doctor(arguments: argparse.Namespace, _: list[str]) -> int:
    doctor(arguments.install)
    return 0


def doctor(
    install: bool,
    examine: Callable[[], list[rendering.Finding]] = rendering.examine,
    installer: Callable[[], None] | None = None,
) -> None:
    """Say whether this machine can render, and with what.

    Args:
        install: Install what is missing, where that is allowed.
        examine: Tries the backends.
        installer: Installs what is missing; by default apt-get, if this process may use it.

    Raises:
        UserError: It cannot; the message says what to do.
    """
    if installer is None and rendering.can_install():
        installer = rendering.install_system_packages
    findings = examine()
    if rendering.advice(findings) and install and installer is not None:
        print(f"{findings[0]}; installing the system's libraries")
        installer()
        findings = examine()
    print(*findings, sep="\n")
    if advice := rendering.advice(findings):
        raise UserError(f"cannot render with {findings[0].backend}: {advice}")
    print(f"rendering works; frames are drawn with {findings[0].backend}")
