"""Sentences for a task: which one an episode is told with."""

import pytest

from vlm_agent.common.errors import UserError
from vlm_agent.world.instructions import Instructions

GOALS = {"red": ["Go to red.", "Find red."], "blue": ["Go to blue."]}
HELD_OUT = {"red": ["Head for red."], "blue": ["Head for blue.", "Blue, please."]}


def told(instructions: Instructions, goal: str | None) -> set[str]:
    return {instructions.sentences[instructions.choose(goal, seed)] for seed in range(40)}


def test_an_episodes_seed_chooses_among_the_sentences_of_its_goal():
    instructions = Instructions(GOALS, HELD_OUT)
    assert told(instructions, "red") == set(GOALS["red"])
    assert told(instructions, "blue") == set(GOALS["blue"])
    assert told(instructions, "Find red.") == set(GOALS["red"])  # a sentence names its goal
    assert [instructions.choose("red", 5) for _ in range(3)] == [instructions.choose("red", 5)] * 3
    assert told(Instructions(["One.", "Two."]), None) == {"One.", "Two."}


def test_held_out_sentences_are_used_where_they_are_asked_for_and_have_numbers_of_their_own():
    trained, held_out, everything = (
        Instructions(GOALS, HELD_OUT, which) for which in ("trained", "held_out", "all")
    )
    assert trained.sentences == held_out.sentences == everything.sentences
    assert told(held_out, "red") == set(HELD_OUT["red"])
    assert told(everything, "blue") == {*GOALS["blue"], *HELD_OUT["blue"]}
    assert all(held_out.goal(held_out.choose("blue", seed)) == "blue" for seed in range(9))


def test_another_goals_sentence_never_asks_for_the_same():
    instructions = Instructions(GOALS, HELD_OUT)
    others = instructions.of_other_goals()
    for sentence, other in enumerate(others):
        assert instructions.goal(sentence) != instructions.goal(other)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (({"red": []},), "instructions: expected a sentence for 'red'"),
        (([" "],), "instructions: ' ': expected a sentence"),
        (({"red": ["Go."], "blue": ["Go."]},), "instructions: 'Go.' stands there twice"),
        (
            (GOALS, {"rde": ["Go!"]}),
            "held_out_instructions: unknown goal 'rde'; did you mean 'red'",
        ),
        ((GOALS, {"red": ["Go!"]}, "held_out"), "held_out_instructions: expected a .* for 'blue'"),
    ],
)
def test_what_cannot_be_told_is_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        Instructions(*settings)


def test_an_environment_that_asks_for_something_else_is_refused():
    with pytest.raises(UserError, match="asks for 'green' in the episode of seed 3.*'red', 'blue'"):
        Instructions(GOALS).choose("green", 3)
    with pytest.raises(UserError, match="asks for no goal"):
        Instructions(GOALS).choose(None, 3)
