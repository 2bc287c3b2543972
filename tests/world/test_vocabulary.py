"""``words:`` of a recipe: what can be said of a word, and what cannot."""

import pytest

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import Choice, Motion, Push
from vlm_agent.world.vocabulary import read_words


def test_each_kind_of_meaning():
    vocabulary = read_words(
        {
            "jump": 2,
            "run": {"number": 1, "repeat": 3},
            "push": [0.5, -1],
            "hold": {"vector": [None, 1.0], "repeat": 2},
            "far left": {"direction": "left", "distance": "2.5 steps"},
            "dip": {"direction": [0, 3, -4], "distance": 0.02},
            "twist": {"turn": [0, 0, -15]},
            "grab": {"gripper": "close"},
        }
    )
    assert list(vocabulary.meanings.values()) == [
        Choice(2),
        Choice(1, 3),
        Push((0.5, -1.0)),
        Push((None, 1.0), 2),
        Motion((0, 1, 0), steps=2.5),
        Motion((0, 0.6, -0.8), distance=0.02),
        Motion(turn=(0, 0, -15)),
        Motion(gripper="close"),
    ]
    assert vocabulary.senseless == ((7, "gripper", 1),)
    lengths = [vocabulary.meaning(n).length(0.04) for n in (4, 5)]
    assert lengths == [pytest.approx(0.1), 0.02]


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        (None, "None: expected a number, a vector, or a motion"),
        ("left", "'left': expected a number, a vector, or a motion"),
        (True, "True: expected a number"),
        ({"number": 1.5}, "1.5: expected number to be a whole number"),
        ({"number": 1, "repeat": 0}, "0: expected repeat to be a whole number from 1"),
        ({"vector": []}, "expected vector to be a list of numbers"),
        ([0.1, "up"], "'up': expected a finite number"),
        ([float("inf")], "inf: expected a finite number"),
        ({"direction": "lefft"}, "unknown direction 'lefft'; did you mean 'left'"),
        ({"direction": [1, 0]}, "expected three numbers"),
        ({"direction": "up", "distance": "far"}, "'far': expected distance in metres"),
        ({"direction": "up", "distance": -0.1}, "-0.1: expected distance in metres"),
        ({"direction": "up", "distence": 0.1}, "unknown key 'distence'; did you mean 'distance'"),
        ({"gripper": "shut"}, "'shut': expected gripper to be open or close"),
        ({}, "expected a direction, a turn or a gripper command"),
    ],
)
def test_what_says_nothing_is_refused(what, problem):
    with pytest.raises(UserError, match="words: 'a word': .*") as refused:
        read_words({"a word": what, "another": 0})
    assert problem in str(refused.value)


def test_one_word_alone_is_no_choice():
    with pytest.raises(UserError, match="words: expected two words or more, got 1"):
        read_words({"go": 0})
