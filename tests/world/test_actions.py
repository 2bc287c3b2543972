import pytest

from vlm_agent.common.errors import UserError, nearest, unknown_name
from vlm_agent.common.seeding import derive_rng, derive_seed
from vlm_agent.world.actions import DEFAULT_WORDS, MOTIONS, ActionVocabulary


def test_words_and_indices_are_inverse():
    vocabulary = ActionVocabulary()
    assert [vocabulary.index(vocabulary.word(i)) for i in range(8)] == list(range(8))


def test_directions_are_the_six_axes_and_the_gripper_words_hold_still():
    assert len({m.direction for m in MOTIONS[:6]}) == 6
    assert all(sum(abs(d) for d in m.direction) == 1 for m in MOTIONS[:6])
    assert [(m.direction, m.gripper) for m in MOTIONS[6:]] == [
        ((0, 0, 0), "close"),
        ((0, 0, 0), "open"),
    ]


def test_unknown_word_names_the_nearest():
    with pytest.raises(UserError, match="'forwards'.*'forward'"):
        ActionVocabulary().index("forwards")


@pytest.mark.parametrize("index", [-1, 8, 0.0, "up", None])
def test_index_out_of_range(index: object):
    with pytest.raises(UserError, match="out of range"):
        ActionVocabulary().word(index)
    with pytest.raises(UserError, match="out of range"):
        ActionVocabulary().meaning(index)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (DEFAULT_WORDS[:7], "expected 8 words"),
        ((*DEFAULT_WORDS[:7], "up"), "'up' stands there twice"),
        ((*DEFAULT_WORDS[:7], ""), "empty"),
        ((*DEFAULT_WORDS[:7], "open "), "spaces around"),
    ],
)
def test_bad_vocabularies_are_refused(words: tuple[str, ...], problem: str):
    with pytest.raises(UserError, match=problem):
        ActionVocabulary().renamed(words)


def test_nearest_ignores_case_and_lists_all_names_if_nothing_is_near():
    assert nearest("pickplacecan", ["PickPlaceCan", "Lift"])[0] == "PickPlaceCan"
    assert "valid names are: Lift, Stack" in unknown_name("task", "xyz", ["Stack", "Lift"])


def test_seeds_depend_on_every_coordinate_and_on_nothing_else():
    base = derive_seed(3, "reset", 1, 2)
    assert base == derive_seed(3, "reset", 1, 2)
    others = [(4, "reset", 1, 2), (3, "sample", 1, 2), (3, "reset", 12), (3, "reset", 2, 1)]
    assert len({base, *(derive_seed(*other) for other in others)}) == 5
    assert 0 <= base < 2**32


def test_seeds_do_not_change_between_versions():
    """Recorded episodes and checkpoints rely on them."""
    assert derive_seed(0, "episode", 0, 0, 0) == 2253316027
    assert derive_rng(0, "sample").random() == derive_rng(0, "sample").random()
