"""Comparing policies on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.common.statistics import mcnemar
from vlm_agent.evaluation.evaluate import Evaluation

DETAILS = ("episodes", "env", "vocabulary")
"""What an evaluation holds besides its rates."""


def compare(evaluations: Sequence[Evaluation | dict[str, Any]]) -> list[dict[str, Any]]:
    """Each evaluation against the first, on the same episodes.

    Args:
        evaluations: Of each policy, or what :meth:`Evaluation.to_dict` gave and JSON kept.

    Returns:
        The rates of each, with its ``difference`` in success, how many episodes ``only_first`` and
        ``only_this`` solved, and the ``p_value`` of :func:`mcnemar`.

    Raises:
        UserError: There are none, or they are not about the same episodes.
    """
    if not evaluations:
        raise UserError("there is nothing to compare: give two evaluations or more")
    results = []
    for number, one in enumerate(evaluations, 1):
        values = one.to_dict() if isinstance(one, Evaluation) else one
        results.append({"policy": f"policy {number}", **values})
    first, rows = results[0], []
    seeds = [episode["seed"] for episode in first["episodes"]]
    for result in results:
        if [episode["seed"] for episode in result["episodes"]] != seeds:
            raise UserError(
                f"{first['policy']} and {result['policy']} did not play the same episodes: "
                "compare results of one split, seed and number of episodes"
            )
        scenes = [r.get("env", {}) for r in (first, result)]
        if different := [key for key in scenes[0] if scenes[1].get(key) != scenes[0][key]]:
            raise UserError(
                f"{first['policy']} and {result['policy']} were trained in, or asked for, another "
                f"{', '.join(different)}: say which with --{different[0]}"
            )
        solved = [[episode["success"] for episode in r["episodes"]] for r in (first, result)]
        only_first, only_second, p = mcnemar(*solved)
        rows.append(
            {
                **{key: value for key, value in result.items() if key not in DETAILS},
                "difference": result["success_rate"] - first["success_rate"],
                "only_first": only_first,
                "only_this": only_second,
                "p_value": p,
            }
        )
    return rows


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :func:`compare` as text."""
    width = max(len("policy"), *(len(row["policy"]) for row in rows))
    lines = [
        f"{'policy':<{width}}  {'success':>7}  {'95 %':>11}  {'words':>6}  "
        f"{'difference':>10}  {'+/-':>9}  {'p':>8}"
    ]
    for number, row in enumerate(rows):
        interval = f"{row['ci95_low']:.3f}-{row['ci95_high']:.3f}"
        line = f"{row['policy']:<{width}}  {row['success_rate']:>7.3f}  {interval:>11}"
        line += f"  {row['mean_length']:>6.1f}"
        if number > 0:
            decided = f"{row['only_this']}/{row['only_first']}"
            line += f"  {row['difference']:>+10.3f}  {decided:>9}  {row['p_value']:>8.2g}"
        lines.append(line)
    episodes, split = rows[0]["num_eval_episodes"], rows[0]["split"]
    lines += [
        "",
        f"({episodes} {split} episodes, the same for all; +/-: solved by this policy alone and by "
        "the first alone; p: McNemar's exact test, two-sided)",
    ]
    return "\n".join(lines)
