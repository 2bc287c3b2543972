"""``vlm-agent worlds``: the recipes of the Gymnasium worlds, run and measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_agent.evaluation.evaluate import read_result
from vlm_agent.studies.stages import Stage, hardware, read_hours, resumable, run_stages
from vlm_agent.studies.study import DEMO_SETTINGS


@dataclass(frozen=True)
class Measured:
    """An evaluation on test episodes.

    Attributes:
        policy: ``expert``, ``random``, or the recipe that made it.
        options: Further ones of ``vlm-agent eval``.
        episodes: How many.
    """

    policy: str
    options: tuple[str, ...] = ()
    episodes: int = 100


@dataclass(frozen=True)
class World:
    """A recipe, and what is measured in its world.

    Attributes:
        recipe: Its name.
        measured: The evaluations.
        is_ppo: Whether it is one for PPO; else it is one for a warm start.
        start: The recipe from whose policy the warm start begins, if that is one of these.
    """

    recipe: str
    measured: tuple[Measured, ...]
    is_ppo: bool = False
    start: str | None = None


def _with_expert(
    recipe: str, env: str, start: str | None = None, ablations: Sequence[str] = ()
) -> World:
    expert = Measured("expert", ("--env", env), episodes=200)
    random = Measured("random", ("--env", env))
    less = [Measured(recipe, ("--ablate", what)) for what in ablations]
    return World(recipe, (expert, random, Measured(recipe), *less), start=start)


FETCH, GRID = "vlm_agent.world.gym.fetch", "vlm_agent.world.gym.minigrid"
ANYWHERE = ("--env", "minigrid:MiniGrid-Empty-Random-5x5-v0")
"""The empty room in which episodes begin anywhere."""

WORLDS: Mapping[str, tuple[World, ...]] = {
    "minigrid": (
        World("minigrid", (Measured("minigrid"), Measured("minigrid", ANYWHERE)), is_ppo=True),
        _with_expert("minigrid_goto", f"{GRID}:GoToDoor-v0", ablations=("instruction", "image")),
    ),
    "fetch": (
        _with_expert("fetch_reach", f"{FETCH}:Reach-v0"),
        _with_expert("fetch_pick", f"{FETCH}:PickAndPlace-v0"),
        _with_expert("fetch_push", f"{FETCH}:Push-v0", start="fetch_pick"),
    ),
}
"""By the name of the file of results."""


def run_worlds(folder: Path, results: Path, names: Sequence[str]) -> Iterator[Path]:
    """Run what has not been run, and write what came of it.

    What a file says of recipes that are not asked for stays.

    Args:
        folder: Where everything is made.
        results: The folder of the JSON files, whose paths come one by one.
        names: Of :data:`WORLDS`, or of recipes in them.
    """
    for file, worlds in WORLDS.items():
        chosen = [world for world in worlds if {file, world.recipe} & set(names)]
        if not chosen:
            continue
        stages = [stage for world in worlds for stage in world_stages(world, folder)]
        mine = [stage.name for world in chosen for stage in world_stages(world, folder)]
        run_stages(stages, folder, mine)
        path = results / f"{file}.json"
        earlier = json.loads(path.read_text()) if path.is_file() else {}
        spent, hours = read_hours(folder), earlier.get("hours", {})
        hours |= {name: round(spent[name], 3) for name in mine}
        rows: list[dict[str, Any]] = []
        for world in worlds:
            if world in chosen:
                rows += [_row(world, one, folder) for one in world.measured]
            else:
                rows += [row for row in earlier.get("rows", []) if row["recipe"] == world.recipe]
        written = {
            "hardware": hardware(),
            "hours": {one.name: hours[one.name] for one in stages if one.name in hours},
            "rows": rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(written, indent=1) + "\n")
        yield path


def world_stages(world: World, folder: Path) -> Iterator[Stage]:
    """Demonstrations and a warm start, or PPO; then the evaluations."""
    recipe, trained = world.recipe, f"training: {world.recipe}"
    policy = folder / "checkpoints" / f"{recipe}_{'best' if world.is_ppo else 'final'}"
    config = ["--config", f"recipes/{recipe}.yaml", "--output_dir", str(folder)]
    if world.is_ppo:
        summary = folder / "runs" / recipe / "summary.json"
        yield resumable(Stage(trained, ("vlm_agent.train", *config), summary), recipe)
    else:
        shown = folder / "demonstrations" / recipe
        config += ["--demonstrations", str(shown)]
        needs = [f"demonstrations: {recipe}"]
        command = ["vlm_agent.cli", "demos", *config]
        made = shown / "README.md"
        yield Stage(needs[0], tuple(command), made, settings=DEMO_SETTINGS, folder=shown)
        if world.start is not None:
            config += ["--init_from", str(policy.with_name(f"{world.start}_final"))]
            needs.append(f"training: {world.start}")
        learning = Stage(trained, ("vlm_agent.sft", *config), policy, tuple(needs))
        yield resumable(learning, recipe)
    for one in world.measured:
        path = _path(world, one, folder)
        is_own = one.policy == recipe
        command = ["vlm_agent.cli", "eval", "--split", "test", "--num_envs", "16"]
        command += ["--policy", str(policy) if is_own else one.policy]
        command += ["--num_eval_episodes", str(one.episodes), *one.options]
        command += ["--json", str(path)]
        yield Stage(f"evaluation: {path.stem}", tuple(command), path, (trained,) * is_own)


def _path(world: World, one: Measured, folder: Path) -> Path:
    changes = [option.strip("-").replace(":", "-") for option in one.options]
    name = "_".join([world.recipe, one.policy, *(changes if one.policy == world.recipe else ())])
    return folder / "evaluations" / f"{name}.json"


def _row(world: World, one: Measured, folder: Path) -> dict[str, Any]:
    result = read_result(_path(world, one, folder))
    return {
        "recipe": world.recipe,
        "policy": one.policy,
        "env": result["task"],
        "split": result["split"],
        "ablate": result["ablate"],
        "greedy": result["greedy"],
        "episodes": result["num_eval_episodes"],
        **{key: result[key] for key in ("success_rate", "ci95_low", "ci95_high", "mean_length")},
    }
