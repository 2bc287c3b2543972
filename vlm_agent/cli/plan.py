"""``vlm-agent plan``: what a recipe will take."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from vlm_agent.cli.options import check_writable, count
from vlm_agent.common.errors import UserError


def add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="how much memory and time a recipe will take, and what to change if it does not fit",
        description="Plan a recipe's road, from demonstrations to PPO, for these CPU cores or for "
        "GPUs that need not be here: memory by kind, time by stage, what takes most, what to "
        "change. Loads no weights. Takes --config RECIPE and any --key value override.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the recipe")
    parser.add_argument("--gpu", metavar="NAME", help="a GPU: h100, a100, 4090, ...")
    parser.add_argument("--gpus", type=count, metavar="N", help="how many a node has (default: 1)")
    parser.add_argument("--nodes", type=count, metavar="M", help="how many nodes (default: 1)")
    parser.add_argument(
        "--network", type=count, metavar="GBIT", help="per second between nodes (default: 100)"
    )
    parser.add_argument("--cpu", action="store_true", help="no GPU (the default)")
    parser.add_argument(
        "--cores", type=count, metavar="N", help="CPU cores (default: those of this machine)"
    )
    parser.add_argument(
        "--host_memory", type=count, metavar="GIB", help="host memory (default: this machine's)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan here")
    parser.add_argument(
        "--measure", action="store_true", help="measure this machine's constants, to --json"
    )
    parser.add_argument(
        "--measure_gpu", action="store_true", help="measure the GPU that is here, to --json"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run three recipes, and two processes, beside their plans, to --json",
    )
    parser.set_defaults(run=_plan, takes_recipe=True)


def _plan(arguments: argparse.Namespace, rest: list[str]) -> int:
    check_writable(arguments.json)
    if arguments.measure:
        from vlm_agent.plan.measure import measure

        result = measure()
    elif arguments.measure_gpu:
        from vlm_agent.plan.gpu import measure_gpu

        result = measure_gpu()
    elif arguments.check:
        from vlm_agent.plan.check import check_plans
        from vlm_agent.plan.machine import Machine

        result = check_plans(Machine.here())
    else:
        result = _planned(arguments, rest)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {arguments.json}")
    elif arguments.config is None:
        for key, value in result.items():
            print(f"{key:<28}{value:.4g}" if isinstance(value, float) else f"{key:<28}{value}")
    return 0


def _planned(arguments: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """Show a plan."""
    from vlm_agent.plan.machine import Machine, find_gpu
    from vlm_agent.plan.plan import describe, make_plan

    if arguments.config is None:
        raise UserError("plan: which recipe? e.g. --config recipes/full.yaml")
    if arguments.cpu and arguments.gpu:
        raise UserError(f"--cpu, --gpu {arguments.gpu}: one or the other")
    if arguments.network and (arguments.nodes or 1) == 1:
        raise UserError(f"--network {arguments.network}: between which nodes? e.g. --nodes 2")
    if arguments.gpus and not arguments.gpu:
        raise UserError(f"--gpus {arguments.gpus}: of which kind? Name it: --gpu h100")
    machine = Machine.here()
    if arguments.gpu:
        gpu = find_gpu(arguments.gpu)
        machine = dataclasses.replace(machine, gpu=gpu, gpus=arguments.gpus or 1)
    if arguments.cores:
        machine = dataclasses.replace(machine, cores=arguments.cores)
    if arguments.host_memory:
        machine = dataclasses.replace(machine, memory=arguments.host_memory * 2**30)
    if arguments.network:
        machine = dataclasses.replace(machine, network=arguments.network * 1e9 / 8)
    machine = dataclasses.replace(machine, nodes=arguments.nodes or 1)
    plan = make_plan(arguments.config, rest, machine)
    print(*describe(plan), sep="\n")
    return plan.to_dict()
