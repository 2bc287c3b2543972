"""From observations to model inputs: prompt, chat template, tokens and pictures."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.families import Family
from vlm_agent.policy.inputs.frames import FrameProcessor
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.scoring.words import Words

_ANSWER = "ANSWER"
"""A word that the chat template is asked to put where the model's answer goes."""

TRIED_NUMBERS = (*range(10), 120)
"""Values with which facts without names are tried: all first digits."""


class ObservationEncoder:
    """Renders the prompt of each observation and makes tokens and image inputs.

    Args:
        processor: The model's, with a chat template.
        template: The checked prompt template.
        family: The model's.

    Attributes:
        words: The action words as tokens, where the answer begins.

    Raises:
        UserError: The processor has no chat template, the template or an action word contains one
            of the tokenizer's special tokens, or the words have no tokens of their own.
    """

    def __init__(self, processor: Any, template: PromptTemplate, family: Family) -> None:
        if not processor.chat_template:
            raise UserError("the model's processor has no chat template")
        self.processor = processor
        self.template = template
        self.family = family
        self.frames = FrameProcessor(processor.image_processor, family)
        texts = [template.source, template.task, template.robot, *template.words]
        texts += [value for fact in template.facts for value in fact.values]
        tokenizer = processor.tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        for token in {*tokenizer.all_special_tokens, *added, processor.image_token}:
            if any(token in text for text in texts):
                raise UserError(f"prompt or words contain the special token {token!r}")
        prompt = self.prompt(template.start_facts)
        self.words = Words.in_context(tokenizer, prompt, template.words, self._separator(prompt))
        self._check_end(prompt)

    def prompt(self, facts: Sequence[int]) -> str:
        """The whole text the model reads, up to where its answer begins."""
        return self._chat(self.template.render(facts), [], add_generation_prompt=True)

    def _chat(
        self, text: tuple[str, str], answer: list[dict[str, Any]], add_generation_prompt: bool
    ) -> str:
        """A prompt's text before and after the picture in the model's chat template."""
        before, after = text
        content = [
            {"type": "text", "text": before},
            {"type": "image"},
            {"type": "text", "text": after},
        ]
        content = [part for part in content if part.get("text") != ""]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}, *answer],
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )

    def _separator(self, prompt: str) -> str:
        """What the chat template puts between the prompt and an answer; in some it is a space."""
        turn = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
        text = self.template.render(self.template.start_facts)
        whole = self._chat(text, [turn], add_generation_prompt=False)
        between = whole[len(prompt) :].partition(_ANSWER)[0]
        return between if whole.startswith(prompt) and between.isspace() else ""

    def _check_end(self, prompt: str) -> None:
        """Refuse a tokenizer that puts something between the prompt and the answer."""
        end = self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"][-1]
        text = self.template.render(self.template.start_facts)
        ids = self.row(text, (112, 112, 3))["input_ids"][0].tolist()
        if ids[-1] != end:
            token = self.processor.tokenizer.convert_ids_to_tokens(ids[-1])
            raise UserError(f"the model's tokenizer puts {token!r} between prompt and answer")

    def row(self, text: tuple[str, str], shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Tokens of one prompt with the picture's place marked, (1, L), without padding.

        Args:
            text: The prompt before and after the picture, as the template renders it.
            shape: Of the frame, (H, W, 3).
        """
        frame = np.zeros(shape, np.uint8)
        images: list[Any] = [[frame]] if self.family.nested_images else [frame]
        prompt = self._chat(text, [], add_generation_prompt=True)
        return dict(
            self.processor(
                text=[prompt],
                images=images,
                return_tensors="pt",
                add_special_tokens=self._adds_special_tokens(prompt),
                **self.family.image_options,
            )
        )

    def tokens(self, text: tuple[str, str]) -> list[int]:
        """Tokens of a prompt in which the picture is what the chat template writes for one."""
        prompt = self._chat(text, [], add_generation_prompt=True)
        adds = self._adds_special_tokens(prompt)
        return list(self.processor.tokenizer(prompt, add_special_tokens=adds)["input_ids"])

    @functools.cached_property
    def prefix(self) -> np.ndarray:
        """Tokens that prompts begin with, whatever the facts are, as far as is known, int64 (K,).

        Found by trying values of each fact. Prompts that begin otherwise share less.
        """
        start = self.template.start_facts
        kinds = [start]
        for place, fact in enumerate(self.template.facts):
            tried = range(len(fact.values)) if fact.values else TRIED_NUMBERS
            kinds += [(*start[:place], value, *start[place + 1 :]) for value in tried]
        texts: dict[tuple[str, str], None] = {}
        for facts in kinds:
            with contextlib.suppress(UserError):  # of values that no episode may have
                texts[self.template.render(facts)] = None
        prompts = [np.array(self.tokens(text), np.int64) for text in texts]
        picture = prompts[0].tolist().index(self.processor.image_token_id)
        return prompts[0][: min(picture, _shared_by_all(prompts))]

    def _adds_special_tokens(self, prompt: str) -> bool:
        """Whether the tokenizer is to add any; some chat templates write the first one."""
        start = self.processor.tokenizer.bos_token
        return start is None or not prompt.startswith(start)


class PromptRows:
    """Token and position ids of prompts, each made once and padded together when asked for.

    What a processor makes of a picture is the same in every prompt, so it is asked once for each
    number of tokens before and behind the picture, and the other prompts are put together.

    Args:
        encoder: Makes the tokens.
        model: The transformers model's inner part, which knows positions.

    Attributes:
        shares: Whether it tells what prompts begin with, so that this is computed once.
    """

    def __init__(self, encoder: ObservationEncoder, model: Any) -> None:
        self.encoder = encoder
        self.model = model
        self.shares = True
        self.pad_token = encoder.processor.tokenizer.pad_token_id or 0
        # What the prompt says decides, not which facts it was made of: a template that does not
        # tell the time has few prompts, however long episodes are.
        self._text = functools.lru_cache(maxsize=100_000)(encoder.template.render)
        self._row = functools.lru_cache(maxsize=100_000)(self._make)
        self._picture = functools.cache(self._find_picture)
        self._check_length()
        self._positions: dict[tuple[int, int, tuple[int, ...]], np.ndarray] = {}

    def _check_length(self) -> None:
        """Refuse a prompt that is longer, without its picture, than what the model can read.

        Raises:
            UserError: It is.
        """
        config = self.model.config
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        template = self.encoder.template
        count = len(self.encoder.tokens(template.render(template.start_facts)))
        if most is not None and count > most:
            raise UserError(
                f"prompt_template: it makes {count} tokens, and the model reads at most {most}"
            )

    def _make(self, text: tuple[str, str], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        written, whole = self._picture(shape)
        tokens = self.encoder.tokens(text)
        places = [n for n in range(len(tokens)) if tokens[n : n + len(written)] == written]
        if len(places) != 1:
            return self._ask(text, shape)
        before, behind = tokens[: places[0]], tokens[places[0] + len(written) :]
        layout = len(before), len(behind), shape
        ids = np.array([*before, *whole, *behind])
        if layout not in self._positions:
            asked, positions_PL = self._ask(text, shape)
            if not np.array_equal(ids, asked):  # a processor that does more than that
                return asked, positions_PL
            self._positions[layout] = positions_PL
        return ids, self._positions[layout]

    def _ask(self, text: tuple[str, str], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """What the processor makes of a prompt and a picture."""
        row = self.encoder.row(text, shape)
        positions_PL = self.encoder.family.positions(self.model, row)
        return row["input_ids"][0].numpy(), positions_PL.numpy()

    def _find_picture(self, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """The tokens that the chat template writes for a picture, and those they become."""
        template = self.encoder.template
        text = template.render(template.start_facts)
        written, whole = self.encoder.tokens(text), self._ask(text, shape)[0].tolist()
        # At least one token is kept: one that becomes several of its kind is shared from both ends.
        ahead, behind = _shared(written, whole), _shared(written[::-1], whole[::-1])
        first = max(0, min(ahead, len(written) - max(behind, 1)))
        last = min(behind, len(written) - 1 - first)
        return written[first : len(written) - last], whole[first : len(whole) - last]

    def __call__(self, facts_BF: np.ndarray, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Padded on the left to the longest prompt of the batch.

        Args:
            facts_BF: Scene facts of B observations.
            shape: Of their frames, (H, W, 3).

        Returns:
            ``input_ids``, ``attention_mask`` (B, L), ``position_ids`` (P, B, L), P as in
            :meth:`Family.positions`, and ``prefix_ids`` (K,): tokens before the picture with which
            all of them begin.
        """
        rows = [self._row(self._text(tuple(facts)), shape) for facts in facts_BF.tolist()]
        prefix = self.encoder.prefix[: None if self.shares else 0]
        if not all(np.array_equal(ids[: len(prefix)], prefix) for ids, _ in rows):
            prefix = prefix[: _shared_by_all([prefix, *(ids for ids, _ in rows)])]
        batch, length = len(rows), max(len(ids) for ids, _ in rows)
        ids_BL = np.full((batch, length), self.pad_token, np.int64)
        mask_BL = np.zeros((batch, length), np.int64)
        positions_PBL = np.zeros((len(rows[0][1]), batch, length), np.int64)
        for i, (ids, positions_PL) in enumerate(rows):
            ids_BL[i, length - len(ids) :] = ids
            mask_BL[i, length - len(ids) :] = 1
            positions_PBL[:, i, length - len(ids) :] = positions_PL
        return {
            "input_ids": torch.from_numpy(ids_BL),
            "attention_mask": torch.from_numpy(mask_BL),
            "position_ids": torch.from_numpy(positions_PBL),
            "prefix_ids": torch.from_numpy(prefix),
        }


def _shared(one: Iterable[int], other: Iterable[int]) -> int:
    """How many tokens are the same from the beginning on."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _shared_by_all(rows: Sequence[np.ndarray]) -> int:
    return min(_shared(rows[0], row) for row in rows)


def sensible_words(facts_BF: np.ndarray, template: PromptTemplate) -> torch.Tensor:
    """Which words make sense, bool (B, A), as the template says.

    Args:
        facts_BF: Facts of B observations.
        template: The prompt.
    """
    sensible_BA = np.ones((len(facts_BF), len(template.words)), bool)
    for word, fact, value in template.senseless:
        sensible_BA[:, word] &= facts_BF[:, template.fact_names.index(fact)] != value
    return torch.from_numpy(sensible_BA)
