"""How sure a measured success rate is."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import stats


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a success rate; (0, 1) for no trials."""
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """McNemar's exact test (1947) of whether two success rates over the same episodes differ.

    Episodes that both solved, or neither, tell nothing; if the policies were as good as each
    other, each of the others would fall to either of them like a fair coin.

    Returns:
        How many episodes only the first solved, how many only the second did, and the two-sided
        p-value.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    decided = only_first + only_second
    p = float(stats.binomtest(only_first, decided).pvalue) if decided else 1.0
    return only_first, only_second, p
