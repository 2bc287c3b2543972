"""``Instructions``: the sentences in which an episode's task may be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.seeding import derive_rng

Paraphrases = Literal["trained", "held_out", "all"]

ONLY_GOAL = ""
"""The goal of a world that has no more than one."""

Sentences = Mapping[str, Sequence[str]] | Sequence[str]
"""By goal; or, where there is one goal alone, its sentences."""


class Instructions:
    """Sentences by goal, several for each where they mean the same.

    A sentence is an integer, its place in :attr:`sentences`, in observations and policies.

    Args:
        trained: The sentences of each goal.
        held_out: Further ones, which training does not use.
        paraphrases: Which are used.

    Attributes:
        sentences: All of them, the held out ones last.
        goals: The goals, in order.

    Raises:
        UserError: There is a goal without a sentence, a sentence of two goals, or an empty one.
    """

    def __init__(
        self,
        trained: Sentences,
        held_out: Sentences | None = None,
        paraphrases: Paraphrases = "trained",
    ) -> None:
        tables = {
            "instructions": by_goal(trained),
            "held_out_instructions": by_goal(held_out or {}),
        }
        self.goals = tuple(tables["instructions"])
        told: list[tuple[str, str]] = []
        usable: list[bool] = []
        for key, table in tables.items():
            is_used = paraphrases in ("all", "trained" if key == "instructions" else "held_out")
            for goal, sentences in table.items():
                if goal not in self.goals:
                    raise UserError(f"{key}: {unknown_name('goal', goal, self.goals)}")
                for sentence in sentences:
                    if not isinstance(sentence, str) or not sentence.strip():
                        raise UserError(f"{key}: {sentence!r}: expected a sentence")
                    if sentence in [known for _, known in told]:
                        raise UserError(f"{key}: {sentence!r} stands there twice")
                    told.append((goal, sentence))
                    usable.append(is_used)
        self.sentences = tuple(sentence for _, sentence in told)
        self._goals = tuple(goal for goal, _ in told)
        self._choices = {
            goal: [n for n, (of, _) in enumerate(told) if of == goal and usable[n]]
            for goal in self.goals
        }
        if lacking := [goal for goal, choices in self._choices.items() if not choices]:
            key = "held_out_instructions" if paraphrases == "held_out" else "instructions"
            of = f" for {lacking[0]!r}" if lacking[0] else ""
            raise UserError(f"{key}: expected a sentence{of}, and there is none")

    def choose(self, asked: str | None, seed: int) -> int:
        """The sentence of an episode.

        Args:
            asked: The goal that the environment set, one of the sentences, or ``None`` where there
                is one goal alone.
            seed: The episode's; it chooses among the sentences of a goal.

        Raises:
            UserError: There is no such goal or sentence.
        """
        if asked in self.sentences and asked not in self._choices:
            asked = self._goals[self.sentences.index(asked)]
        if asked is None and len(self.goals) == 1:
            asked = self.goals[0]
        if asked not in self._choices:
            what = "no goal" if asked is None else f"{asked!r}"
            raise UserError(
                f"instructions: the environment asks for {what} in the episode of seed {seed}; "
                f"expected info['instruction'] to be one of: {', '.join(map(repr, self.goals))}"
            )
        choices = self._choices[asked]
        if len(choices) == 1:
            return choices[0]
        return choices[int(derive_rng(seed, "instruction").integers(len(choices)))]

    @property
    def used(self) -> frozenset[str]:
        """The sentences that episodes may be told with."""
        return frozenset(self.sentences[n] for choices in self._choices.values() for n in choices)

    def of_other_goals(self) -> list[int]:
        """For each sentence one that asks for something else: of the goal that comes next."""
        following = dict(zip(self.goals, (*self.goals[1:], self.goals[0]), strict=True))
        return [self._goals.index(following[goal]) for goal in self._goals]

    def goal(self, sentence: int) -> str:
        """What a sentence asks for."""
        return self._goals[sentence]


def by_goal(sentences: Sentences) -> dict[str, tuple[str, ...]]:
    """Sentences as a mapping from goals."""
    if isinstance(sentences, Mapping):
        return {
            str(goal): (own,) if isinstance(own, str) else tuple(own)
            for goal, own in sentences.items()
        }
    return {ONLY_GOAL: tuple(sentences)} if sentences else {}
