"""Gymnasium environments under words: vectors, pictures, moments."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from vlm_agent.common.errors import UserError
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.gym.picture import Picture, square

WORDS = {
    "east": [1.0, None, 0],
    "north": {"vector": [None, 1.0, 0], "repeat": 3},
    "stop": [0, 0, 1],
}


class Plane(gym.Env):
    """Adds up what it is given; its picture is its place."""

    privileged_names = ("x", "y")

    def __init__(self, kind: str = "usual") -> None:
        self.kind = kind
        self.action_space = spaces.Box(-1, 1, (3,), np.float32)
        self.observation_space = spaces.Box(0, 255, (8, 12, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.given, self.place = [], np.zeros(3)
        return self.see(), {}

    def step(self, action):
        self.given.append(action.tolist())
        self.place = self.place + action
        won = self.place[0] > 2
        return self.see(), 0.5, bool(won), False, {"is_success": won}

    def see(self):
        return np.full((8, 12, 3), 10 * len(self.given), np.uint8)

    def privileged_state(self):
        return self.place[:2] if self.kind == "usual" else self.place

    def snapshot(self):
        return list(self.given), self.place.copy()

    def restore(self, snapshot):
        self.given, self.place = list(snapshot[0]), snapshot[1].copy()


@pytest.fixture(scope="module", autouse=True)
def registered():
    gym.register("Plane-v0", Plane, max_episode_steps=20)
    yield
    del gym.registry["Plane-v0"]


def plane(**settings) -> LanguageActionEnv:
    return LanguageActionEnv(env="Plane-v0", words=WORDS, frame_size=28, **settings)


def test_a_word_is_a_vector_that_is_held_and_keeps_what_it_does_not_say():
    env = plane()
    env.reset(seed=0)
    rewards = [env.step(word)[1] for word in (2, 1, 0)]
    given = [[0, 0, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0]]
    assert env.world.env.unwrapped.given == given
    assert rewards == [0.5, 1.5, 0.5]
    env.close()


def test_an_episode_ends_in_the_middle_of_a_word():
    env = plane()
    env.reset(seed=0)
    env.step(0)
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)
    env.close()


def test_an_episode_is_taken_up_from_what_the_environment_remembers():
    env = plane()
    assert env.world.spec.can_be_restored
    env.reset(seed=0)
    straight = [env.step(word) for word in (2, 0)]
    env.reset(seed=0, options={"actions": (2,)})
    given = env.world.env.unwrapped.given
    env.reset(seed=0, options={"actions": (2,)})  # from the moment that is kept
    assert len(env.moments) == 1
    assert env.world.env.unwrapped.given == given == [[0, 0, 1]]
    again = env.step(0)
    assert again[1:] == straight[1][1:]
    assert np.array_equal(again[0]["image"], straight[1][0]["image"])
    env.close()


def test_a_privileged_state_of_another_size_is_refused():
    env = plane(env_kwargs={"kind": "unusual"})
    env.reset(seed=0)
    with pytest.raises(UserError, match="has the shape \\(3,\\), but .* 2 names"):
        env.privileged_state()
    env.close()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"words": {"a": [1.0], "b": [0, 0, 0]}}, "words: 'a': expected a vector of 3 numbers"),
        ({"words": {"a": [2, 0, 0], "b": [0, 0, 0]}}, "words: 'a': 2.0 is out of range: -1 to 1"),
        ({"words": "turning"}, "words: 'turning' does not say what each word does"),
        ({"words": None}, "words: nothing says what each word does in Plane-v0"),
        ({"robot": "Sawyer"}, "robot: is robosuite's, and env is 'Plane-v0'"),
        ({"randomize": {"light_turn": 3}}, "randomize: is robosuite's"),
        ({"env": "Blackjack-v1", "words": {"hit": 1, "stick": 0}, "picture": "cards"}, "picture: "),
        ({"env": "Plane-v1"}, "env: unknown Gymnasium environment 'Plane-v1'.*name the module"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        LanguageActionEnv(**{"env": "Plane-v0", "words": WORDS, "frame_size": 28, **settings})


def test_the_middle_of_a_picture_is_cut_out_and_resized():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 2:6] = np.arange(4, dtype=np.uint8)[None, :, None] * 50
    assert np.array_equal(square(picture, 4), picture[:, 2:6])
    halves = square(picture, 2)
    assert halves[0, :, 0].tolist() == [25, 125]  # means of two columns each
    doubled = square(picture, 8)
    assert doubled[0, :, 0].tolist() == [0, 0, 50, 50, 100, 100, 150, 150]


class Blind(gym.Env):
    observation_space = spaces.Dict({"flat": spaces.Box(0, 255, (8, 8, 1), np.uint8)})

    def __init__(self, shown):
        self.shown = shown

    def render(self):
        return self.shown


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        (None, "'render' gave NoneType, expected .* is its render_mode rgb_array"),
        (np.zeros((8, 8, 3)), "'render' gave float64, expected an array of uint8"),
        (np.zeros((8, 8), np.uint8), "has the shape \\(8, 8\\), expected"),
    ],
)
def test_what_is_no_picture_is_refused(shown, problem):
    with pytest.raises(UserError, match=f"picture: .*{problem}"):
        Picture(Blind(shown), None, 28).take({})
