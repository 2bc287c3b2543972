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
from vlm_agent.common.whole import MANIFEST
from vlm_agent.evaluation.agents import ALIASES, EXPERT, RANDOM, Agent, load_agent, measure
from vlm_agent.evaluation.remote import PREFIX
from vlm_agent.evaluation.splits import Split, Suite, seen_in_training
from vlm_agent.policy.config import TINY
from vlm_agent.policy.places import policy_folder
from vlm_agent.recipe.command_line import change_env
from vlm_agent.runs.checkpoints import STATE_FILE


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
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "split" in r for r in rows):
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
    base_url: str | None = None,
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
        base_url: Of the server of a model that is elsewhere.
        on_episode: Called with a split's name after each of its episodes.

    Raises:
        UserError: There is no such split or policy, or it cannot play in a split's world.
    """
    policy = ALIASES.get(policy, policy)
    if unknown := [name for name in names if name not in suite.splits]:
        raise UserError(f"splits: {unknown_name('split', unknown[0], suite.splits)}")
    chosen = [suite.splits[name] for name in dict.fromkeys(names or suite.splits)]
    if policy in (EXPERT, RANDOM):  # they are told nothing that could be kept from them
        chosen = [one for one in chosen if one.ablate == "none"]
    load = partial(load_agent, trust_modules=trust_modules, base_url=base_url)
    trained_in = load(policy).trained_in
    for one in chosen:  # what is wrong with the last one is said before the first is played
        try:
            change_env(trained_in, one.changes)
        except UserError as error:
            raise UserError(f"{suite.name}: splits: {one.name}: {error}") from None
    weights = policy_digest(policy)
    for one in chosen:
        asked = _asked(suite, one, policy, how) | {"weights": weights}
        if base_url:
            asked["base_url"] = base_url
        earlier = [row for row in known if asked.items() <= row.items()]
        if earlier:
            yield dict(earlier[-1])
        else:
            count = partial(on_episode, one.name)
            change = partial(change_env, values=one.changes)
            yield asked | _play(load(policy, one.ablate, change), how, count)


def _asked(suite: Suite, one: Split, policy: str, how: Played) -> dict[str, Any]:
    """What a row is the answer to."""
    return {
        "suite": suite.name,
        "split": one.name,
        "group": one.group,
        "is_mistake": one.is_mistake,
        "policy": policy,
        "weights": None,
        "episodes": how.count,
        "mode": "greedy" if how.greedy else "sampled",
        "of": how.split,
        "seed": how.seed,
        "asked": {"changes": dict(one.changes), "ablate": one.ablate},
    }


def _play(agent: Agent, how: Played, on_episode: Callable[[], object]) -> dict[str, Any]:
    """What a row says besides what was asked."""
    played = measure(agent, how.count, how.seed, how.greedy, how.split, how.num_envs, on_episode)
    solved = [episode.success for episode in played.episodes]
    low, high = played.interval
    return {
        "seen": seen_in_training(agent.trained_in, agent.env),
        "successes": sum(solved),
        "success_rate": played.success_rate,
        "ci95_low": low,
        "ci95_high": high,
        "mean_length": played.mean_length,
        "solved": "".join(str(int(one)) for one in solved),
    }


def superseded(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether an earlier row is about what another one is about now."""
    return all(row.get(key) == other[key] for key in ("suite", "split", "policy", "mode", "of"))


def policy_digest(policy: str) -> str | None:
    """A hash of a policy's weights, words and prompt, to tell it from another of that name.

    Raises:
        UserError: There is no such policy.
    """
    if policy in (EXPERT, RANDOM, TINY) or policy.startswith(PREFIX):
        return None
    found = hashlib.blake2b(digest_size=8)
    files = [
        path
        for kind in ("safetensors", "json", "jinja")
        for path in policy_folder(policy).glob(f"*.{kind}")
    ]
    for file in sorted(files):
        if file.name not in (STATE_FILE, MANIFEST):
            with file.open("rb") as content:
                found.update(hashlib.file_digest(content, "blake2b").digest())
    return found.hexdigest()
