"""``measure_suite``: the same episodes in many changed scenes, to see what a policy has learnt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.seeding import Split as Episodes
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.common.strict_yaml import read_yaml
from vlm_agent.evaluation.agents import (
    ALIASES,
    EXPERT,
    RANDOM,
    Ablation,
    Agent,
    load_agent,
    measure,
)
from vlm_agent.evaluation.evaluate import Evaluation
from vlm_agent.policy.artifact import policy_folder
from vlm_agent.policy.config import TINY
from vlm_agent.recipe.command_line import change_env
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.robosuite.appearance.randomize import RANDOMIZE, Covered

GROUPS = ("distribution", "vision", "semantics", "execution")
"""What a split changes: nothing that was not there in training, or one of these."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One way in which the scene is changed.

    Attributes:
        name: What it is called.
        group: One of :data:`GROUPS`.
        changes: Settings of the world, in place of a policy's own.
        ablate: What the policy is not told, see :func:`load_agent`.
        is_mistake: Whether success in it is one, as where another task was asked for.
    """

    name: str
    group: str
    changes: Mapping[str, Any]
    ablate: Ablation = "none"
    is_mistake: bool = False


@dataclasses.dataclass(frozen=True)
class Suite:
    """Splits of the same episodes.

    Attributes:
        name: What it is called: the name of its file.
        splits: By their names.
    """

    name: str
    splits: Mapping[str, Split]


@dataclasses.dataclass(frozen=True)
class Played:
    """Which episodes each split plays, and how.

    Attributes:
        count: How many.
        greedy: Whether the most probable word is taken, or one is drawn.
        split: Whose episodes.
        seed: The evaluation's seed.
        num_envs: How many are played at once.
    """

    count: int = 200
    greedy: bool = True
    split: Episodes = "test"
    seed: int = 0
    num_envs: int = 16


def read_suite(path: Path) -> Suite:
    """A suite from its YAML file.

    ``world`` holds what all splits have in common, ``splits`` what each of them changes: settings
    of a recipe's world, and ``group``, ``ablate`` and ``is_mistake``. What ``randomize`` says does
    not come on top of a policy's own: where a split says nothing of it, nothing is drawn.

    Raises:
        UserError: Naming what the file has that no suite has, or lacks.
    """
    content = read_yaml(path)
    about = {field.name for field in dataclasses.fields(Split)} - {"name", "changes"}
    world_keys = {field.name for field in dataclasses.fields(EnvConfig)}
    for key in content:
        if key not in ("world", "splits"):
            raise UserError(f"{path}: {unknown_name('key', key, ('world', 'splits'))}")
    world, listed = content.get("world") or {}, content.get("splits")
    if not isinstance(world, dict) or not isinstance(listed, dict) or not listed:
        raise UserError(f"{path}: expected the keys world and splits, a mapping each")
    splits = {}
    for name, values in [("world", world), *listed.items()]:
        where = f"{path}: {name}" if name == "world" else f"{path}: splits: {name}"
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected a mapping such as {{group: vision, light: 0.5}}")
        known = world_keys if name == "world" else world_keys | about
        for key in values:
            if key not in known:
                raise UserError(f"{where}: {unknown_name('key', key, known)}")
    for name, values in listed.items():
        if values.get("group") not in GROUPS:
            expected = f"expected one of {', '.join(GROUPS)}"
            raise UserError(f"{path}: splits: {name}: group: {values.get('group')!r}: {expected}")
        own = {key: value for key, value in values.items() if key in world_keys}
        changes = {"randomize": {}, **world, **own}
        rest = {key: value for key, value in values.items() if key in about}
        splits[str(name)] = Split(str(name), changes=changes, **rest)
    return Suite(path.stem, splits)


def find_suite(name: str) -> Suite:
    """A suite's file, or one that ships, by its name.

    Raises:
        UserError: There is no such suite, or something is wrong with it.
    """
    if name.endswith(".yaml"):
        return read_suite(Path(name))
    folder = SHIPPED / "recipes" / "suites"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = [other.stem for other in folder.glob("*.yaml")]
        raise UserError(f"--config: {unknown_name('suite', name, known)}")
    return read_suite(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that a suite has written so far; none where there is no file.

    Raises:
        UserError: The file holds something else.
    """
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"no suite's rows in {str(path)!r}: {error}") from None
    if not isinstance(rows, list) or not all("split" in row for row in rows):
        raise UserError(
            f"no suite's rows in {str(path)!r}: vlm-agent suite --json FILE writes them"
        )
    return rows


def measure_suite(
    suite: Suite,
    policy: str,
    how: Played = Played(),
    *,
    names: Sequence[str] = (),
    known: Sequence[Mapping[str, Any]] = (),
    trust_modules: bool = False,
    on_episode: Callable[[str], object] = lambda name: None,
) -> Iterator[dict[str, Any]]:
    """Play each split's episodes, and give one row each, as soon as it is there.

    Args:
        suite: The splits.
        policy: Who plays, as :func:`load_agent` takes it.
        how: Which episodes: the same ones in each split, if the splits' worlds are alike.
        names: Of the splits to play; all by default.
        known: Rows of an earlier call; those that answer the same question are given again.
        trust_modules: Whether to import the modules that the policy names.
        on_episode: Called with a split's name after each of its episodes.

    Raises:
        UserError: There is no such split or policy, or it cannot play in a split's world.
    """
    policy = ALIASES.get(policy, policy)
    if unknown := [name for name in names if name not in suite.splits]:
        raise UserError(f"splits: {unknown_name('split', unknown[0], suite.splits)}")
    weights = weights_digest(policy)
    for name in names or suite.splits:
        one = suite.splits[name]
        asked: dict[str, Any] = {
            "suite": suite.name,
            "split": name,
            "policy": policy,
            "weights": weights,
            "episodes": how.count,
            "mode": "greedy" if how.greedy else "sampled",
            "of": how.split,
            "seed": how.seed,
            "asked": {"changes": dict(one.changes), "ablate": one.ablate},
        }
        earlier = [row for row in known if asked.items() <= row.items()]
        if earlier:
            yield dict(earlier[-1])
            continue
        change = partial(change_env, values=one.changes)
        agent = load_agent(policy, one.ablate, change, trust_modules)
        count = partial(on_episode, name)
        played = measure(agent, how.count, how.seed, how.greedy, how.split, how.num_envs, count)
        yield asked | _outcome(one, agent, played)


def _outcome(split: Split, agent: Agent, played: Evaluation) -> dict[str, Any]:
    """What a row says besides what was asked."""
    solved = [episode.success for episode in played.episodes]
    low, high = played.interval
    return {
        "group": split.group,
        "is_mistake": split.is_mistake,
        "seen": seen_in_training(agent.trained_in, agent.env),
        "successes": sum(solved),
        "success_rate": played.success_rate,
        "ci95_low": low,
        "ci95_high": high,
        "mean_length": played.mean_length,
        "solved": "".join(str(int(one)) for one in solved),
    }


def weights_digest(policy: str) -> str | None:
    """A hash of a policy's weights, to tell it from another one in the same folder.

    Raises:
        UserError: There is no such policy.
    """
    if policy in (EXPERT, RANDOM, TINY):
        return None
    found = hashlib.blake2b(digest_size=8)
    for file in sorted(policy_folder(policy).glob("*.safetensors")):
        with file.open("rb") as content:
            found.update(hashlib.file_digest(content, "blake2b").digest())
    return found.hexdigest()


NO_MATTER = {"horizon", "reward", "success_bonus", "instructions", "held_out_instructions"}
NO_MATTER |= {"task", "tasks", "randomize"}
"""Settings that do not change what a policy meets, or are looked at one by one; which sentences it
meets, ``paraphrases`` tells."""


def seen_in_training(trained_in: EnvConfig, played_in: EnvConfig) -> Covered:
    """Whether a policy has met what a world shows it: all of it, some, or not what is new in it.

    Args:
        trained_in: The world it was trained in.
        played_in: That of a split.
    """
    trained, played = (dataclasses.asdict(env) for env in (trained_in, played_in))
    drawn = trained_in.randomize
    found = [
        RANDOMIZE[key].covers(drawn[key], value) if key in drawn else "no"
        for key, value in played_in.randomize.items()
    ]
    tasks = [set(env.tasks or [env.task]) for env in (trained_in, played_in)]
    found.append("yes" if tasks[1] <= tasks[0] else "partly" if tasks[0] & tasks[1] else "no")
    found += ["no" for key in played if key not in NO_MATTER and played[key] != trained[key]]
    return next((covered for covered in ("no", "partly") if covered in found), "yes")
