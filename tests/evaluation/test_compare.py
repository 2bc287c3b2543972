"""Paired comparison, against hand arithmetic."""

import pytest

from vlm_agent.common.errors import UserError
from vlm_agent.common.statistics import mcnemar
from vlm_agent.evaluation.compare import compare, comparison_table
from vlm_agent.evaluation.evaluate import Evaluation
from vlm_agent.world.episode import Episode


def result(name: str, solved: list[int], first_seed: int = 0) -> dict:
    episodes = tuple(
        Episode(first_seed + i, (0,) * 10, success=bool(success))
        for i, success in enumerate(solved)
    )
    return Evaluation(episodes, ("a",), {"policy": name, "split": "test"}).to_dict()


def test_mcnemar_against_the_binomial_sum():
    # Eight of ten undecided episodes fall to the second: 2 (1 + 10 + 45) / 2^10.
    first = [True] * 5 + [True] * 2 + [False] * 8 + [False] * 5
    second = [True] * 5 + [False] * 2 + [True] * 8 + [False] * 5
    assert mcnemar(first, second) == (2, 8, pytest.approx(2 * 56 / 1024))


def test_policies_that_solve_the_same_do_not_differ():
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_each_is_compared_with_the_first():
    rows = compare(
        [result("a", [1, 0, 0, 0]), result("b", [1, 1, 1, 0]), result("a", [1, 0, 0, 0])]
    )
    assert [row["difference"] for row in rows] == [0.0, 0.5, 0.0]
    assert (rows[1]["only_first"], rows[1]["only_this"], rows[1]["p_value"]) == (0, 2, 0.5)
    table = comparison_table(rows)
    assert "+0.500" in table.splitlines()[2]
    assert "2/0" in table.splitlines()[2]
    assert "4 test episodes" in table


def test_other_scenes_cannot_be_compared():
    first, second = (
        {**result(name, [1, 0]), "env": {"horizon": horizon}}
        for name, horizon in (("a", 1), ("c", 2))
    )
    with pytest.raises(UserError, match="a and c were trained in, or asked for, another horizon"):
        compare([first, second])


def test_other_episodes_cannot_be_compared():
    with pytest.raises(UserError, match="a and b did not play the same episodes"):
        compare([result("a", [1, 0]), result("b", [1, 0], first_seed=5)])


def test_evaluations_are_compared_as_they_are():
    one, two = (
        Evaluation(tuple(Episode(n, success=n < solved) for n in range(4)), ("a",))
        for solved in (1, 3)
    )
    rows = compare([one, two])
    assert [row["policy"] for row in rows] == ["policy 1", "policy 2"]
    assert rows[1]["difference"] == 0.5
