"""Words as tokens, with tokenizers of three kinds: the right tokens, or a refusal with names."""

import pytest

from tests.policy.tokenizers_of_three_kinds import KINDS
from vlm_agent.common.errors import UserError
from vlm_agent.policy.scoring.words import Words
from vlm_agent.world.actions import DEFAULT_WORDS

PROMPT = "Assistant:"


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def in_context(tokenizer, words, prompt=PROMPT, separator=" ") -> Words:
    return Words.in_context(tokenizer, prompt, words, separator)


def test_the_tokens_are_those_of_the_whole_text(tokenizer):
    found = in_context(tokenizer, DEFAULT_WORDS)
    start = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    for word, ids in zip(DEFAULT_WORDS, found.tokens, strict=True):
        whole = tokenizer(PROMPT + " " + word, add_special_tokens=False)["input_ids"]
        assert whole == [*start, *ids]
        assert tokenizer.decode(ids).strip() == word
    assert any(len(ids) > 1 for ids in found.tokens)


def test_a_separator_belongs_to_the_word_where_spaces_belong_to_what_follows():
    tokenizer = KINDS["byte-level"]()
    after_space = in_context(tokenizer, DEFAULT_WORDS)
    bare = in_context(tokenizer, DEFAULT_WORDS, "Assistant:\n", "")
    assert after_space.pieces[0] == ("Ġforward",)
    assert not any(piece.startswith("Ġ") for piece in bare.pieces[0])
    assert after_space.tokens[0] != bare.tokens[0]


def test_words_of_one_to_five_tokens(tokenizer):
    words = ["up", "left up", "up left up", "left up left up", "up left up left up"]
    found = in_context(tokenizer, words)
    assert [len(ids) for ids in found.tokens] == [1, 2, 3, 4, 5]
    assert [tokenizer.decode(ids).strip() for ids in found.tokens] == words


def test_non_ascii_words_are_spelled_out_or_refused(tokenizer):
    found = in_context(tokenizer, ["öffnen", "schließen", "vorwärts"])
    assert [tokenizer.decode(ids).strip() for ids in found.tokens] == [
        "öffnen",
        "schließen",
        "vorwärts",
    ]
    if tokenizer.unk_token_id in tokenizer("前进")["input_ids"]:  # byte-level ones know all
        with pytest.raises(UserError, match=r"does not know all of '前进': \[.*<unk>"):
            in_context(tokenizer, ["前进", "up"])
    else:
        (ids, _) = in_context(tokenizer, ["前进", "up"]).tokens
        assert tokenizer.decode(ids) == " 前进"


@pytest.mark.parametrize("word", ["", " ", "\n"])
def test_empty_words_are_refused(tokenizer, word: str):
    with pytest.raises(UserError, match=f"{word!r} is empty".replace("\\", "\\\\")):
        in_context(tokenizer, ["up", word])


def test_duplicates_are_refused_with_their_tokens(tokenizer):
    with pytest.raises(UserError, match=r"same tokens: 'up' \[.*\] and 'up' \["):
        in_context(tokenizer, ["up", "down", "up"])


def test_words_that_a_tokenizer_makes_equal_are_refused():
    tokenizer = KINDS["wordpiece"]()
    with pytest.raises(UserError, match=r"'Up' \['up'\] and 'up' \['up'\]"):
        in_context(tokenizer, ["Up", "up"])
    with pytest.raises(UserError, match="'open gripper' .* and 'open  gripper'"):
        in_context(tokenizer, ["open gripper", "open  gripper"])
    assert len(in_context(KINDS["byte-level"](), ["Up", "up"]).tokens) == 2


def test_a_word_that_merges_with_the_prompt_is_refused_with_the_merged_token(tokenizer):
    with pytest.raises(UserError, match=r"'ward' merges with the end of the prompt: \[.*forward"):
        in_context(tokenizer, ["ward", "up"], prompt="open for", separator="")


def test_shared_first_tokens_choose_whole_phrases_and_say_why(tokenizer):
    words = in_context(tokenizer, ["move forward", "move backward", "stop"])
    scoring, why = words.choose_scoring("auto")
    assert scoring == "phrase_word"
    assert "'move forward' [" in why
    assert "and 'move backward' [" in why
    assert "'stop'" not in why
    with pytest.raises(UserError, match="begin with the same token: 'move forward'"):
        words.choose_scoring("first_token")
    for wanted in ("phrase_sum", "phrase_mean", "action_head"):
        assert words.choose_scoring(wanted)[0] == wanted


def test_different_first_tokens_are_enough(tokenizer):
    words = in_context(tokenizer, ["up", "left", "open gripper"])
    assert words.choose_scoring("auto")[0] == words.choose_scoring("first_token")[0]
    assert "different tokens" in words.choose_scoring("auto")[1]


def test_a_word_inside_another_one_cannot_be_scored_as_a_phrase(tokenizer):
    words = in_context(tokenizer, ["close", "close gripper", "up"])
    for wanted in ("auto", "phrase_sum", "phrase_mean", "phrase_word"):
        with pytest.raises(UserError, match=r"'close' \[.*is the beginning of 'close gripper' \["):
            words.choose_scoring(wanted)
    assert words.choose_scoring("action_head")[0] == "action_head"
