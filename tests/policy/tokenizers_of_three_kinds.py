"""Tokenizers as the families use them, small, trained on the spot."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = """
user assistant Assistant: forward backward left right up down close gripper open gripper
move forward move backward move left move right move up move down stop
öffnen schließen vorwärts rückwärts links rechts hinauf hinunter
"""
SPECIALS = ["<pad>", "<unk>", "<s>", "</s>"]


def _fast(tokenizer: Tokenizer, named: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named or None,
    )


def byte_level_bpe(
    text: str = TEXT, special: tuple[str, ...] = (), **named: str
) -> PreTrainedTokenizerFast:
    """As in Qwen, SmolVLM and InternVL: every byte is known, spaces belong to what follows.

    Args:
        text: What to learn merges from.
        special: More special tokens.
        named: Some of them as attributes of the tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*SPECIALS, *special],
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return _fast(tokenizer, named)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As in Llama's LLaVA: a unigram model over text whose spaces are ``▁``."""
    words = sorted({f"▁{word}" for word in TEXT.split()} | {"forward"})
    letters = sorted(set("▁" + TEXT) - set(" \n"))
    vocabulary = [(piece, 0.0) for piece in SPECIALS]
    vocabulary += [(word, -3.0) for word in words] + [(letter, -9.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(vocabulary, SPECIALS.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    return _fast(tokenizer)


def wordpiece_like() -> PreTrainedTokenizerFast:
    """As in BERT: lower-case, spaces are thrown away, pieces inside words begin with ``##``."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=SPECIALS, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return _fast(tokenizer)


KINDS = {
    "byte-level": byte_level_bpe,
    "sentencepiece": sentencepiece_like,
    "wordpiece": wordpiece_like,
}
