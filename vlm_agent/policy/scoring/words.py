"""The action words as tokens: how each continues the prompt, and which scoring tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.policy.config import Scoring

PHRASE_SCORINGS = ("phrase_sum", "phrase_mean", "phrase_word")


@dataclass(frozen=True)
class Words:
    """The words of a policy as the tokens its tokenizer makes of them.

    Attributes:
        words: The words.
        tokens: The token ids of each as the continuation of the prompt, at least one.
        pieces: The same as the tokenizer's strings, for messages.
    """

    words: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    pieces: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if same := _groups(self.tokens):
            raise UserError(f"action_words: words have the same tokens: {self._show(same)}")

    @classmethod
    def in_context(
        cls, tokenizer: Any, prompt: str, words: Sequence[str], separator: str = ""
    ) -> Words:
        """Tokenise words where they stand, since what is before a word decides how it is cut.

        Args:
            tokenizer: A Hugging Face tokenizer of any kind.
            prompt: The whole text before the answer: chat template applied, generation prompt
                included.
            words: The action words.
            separator: What the chat template puts between the prompt and an answer.

        Raises:
            UserError: A word joins with the end of the prompt into one token, has no token, has
                a piece that the tokenizer does not know, or has the tokens of another word.
        """
        start = _token_ids(tokenizer, prompt)
        tokens, pieces = [], []
        for word in words:
            ids = _token_ids(tokenizer, prompt + separator + word)
            own = ids[len(start) :]
            shown = tokenizer.convert_ids_to_tokens(own)
            if not word.strip():
                raise UserError(f"action_words: {word!r} is empty")
            if ids == start:
                raise UserError(f"action_words: the tokenizer makes nothing of {word!r}")
            if ids[: len(start)] != start:
                same = next(i for i in range(len(start)) if ids[i : i + 1] != start[i : i + 1])
                merged = tokenizer.convert_ids_to_tokens(ids[same:])
                raise UserError(
                    f"action_words: {word!r} merges with the end of the prompt: {merged}"
                )
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in own:
                raise UserError(
                    f"action_words: the tokenizer does not know all of {word!r}: {shown}"
                )
            tokens.append(tuple(own))
            pieces.append(tuple(shown))
        return cls(tuple(words), tuple(tokens), tuple(pieces))

    def colliding(self) -> str | None:
        """Words that begin with the same token, with their tokens; ``None`` if there are none."""
        groups = _groups([tokens[:1] for tokens in self.tokens])
        return self._show(groups) if groups else None

    def choose_scoring(self, wanted: Scoring) -> tuple[Scoring, str]:
        """The scoring that tells the words apart, and a line that says why it is this one.

        Args:
            wanted: What the recipe says. ``auto`` takes the first tokens if they are enough, else
                whole phrases, in which each word counts alike however many tokens it has.

        Raises:
            UserError: The words cannot be told apart by what was asked for.
        """
        collision = self.colliding()
        if wanted == "first_token" and collision:
            raise UserError(
                f"action_words: words begin with the same token: {collision}; set scoring: auto, "
                "or a phrase_... scoring"
            )
        chosen = wanted
        if wanted == "auto":
            chosen = "phrase_word" if collision else "first_token"
        if chosen in PHRASE_SCORINGS and (contained := self._contained()):
            raise UserError(f"action_words: {contained}; whole phrases cannot tell them apart")
        if wanted != "auto":
            return chosen, f"scoring: {chosen}, as the recipe says"
        if collision:
            return chosen, f"scoring: {chosen}, since words begin with the same token: {collision}"
        return chosen, f"scoring: {chosen}, since all words begin with different tokens"

    def _contained(self) -> str | None:
        """A word whose tokens another one begins with, and so could never be said instead."""
        for i, short in enumerate(self.tokens):
            for j, long in enumerate(self.tokens):
                if i != j and long[: len(short)] == short:
                    return f"{self._word(i)} is the beginning of {self._word(j)}"
        return None

    def _show(self, groups: list[list[int]]) -> str:
        return "; ".join(" and ".join(map(self._word, indices)) for indices in groups)

    def _word(self, index: int) -> str:
        return f"{self.words[index]!r} {list(self.pieces[index])}"


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _groups(keys: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Indices of equal keys, where there are several."""
    by_key: dict[tuple[int, ...], list[int]] = {}
    for index, key in enumerate(keys):
        by_key.setdefault(key, []).append(index)
    return [indices for indices in by_key.values() if len(indices) > 1]
