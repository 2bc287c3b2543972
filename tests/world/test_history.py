"""``history``: the last pictures and words, whichever way an episode has come to where it is."""

import numpy as np
import pytest

from tests.short_runs import metrics_of
from vlm_agent.common.errors import UserError
from vlm_agent.evaluation.agents import load_agent, measure
from vlm_agent.ppo.run import run_training
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv

DOORS = {"env": "vlm_agent.world.gym.minigrid:GoToDoor-v0", "horizon": 30}
LIFT = {"task": "Lift"}
WORDS = [0, 2, 0, 1, 2]
"""None of them ends an episode, in either world."""


@pytest.mark.parametrize("world", [DOORS, LIFT], ids=["doors", "Lift"])
@pytest.mark.parametrize("history", [2, 4])
def test_the_last_pictures_are_one_under_the_other_and_the_last_words_are_told(world, history):
    plain, env = (LanguageActionEnv(frame_size=28, **world, history=h) for h in (1, history))
    pictures = [plain.reset(seed=3)[0]["image"]]
    seen = env.reset(seed=3)[0]
    for said in range(len(WORDS) + 1):
        told = [WORDS[said - n] if said >= n else len(env.vocabulary) for n in (1, 2)]
        assert [seen["last_action"], seen["last_action_2"]] == told
        shown = ([pictures[0]] * history + pictures)[-history:]
        assert np.array_equal(seen["image"], np.concatenate(shown))
        assert seen in env.observation_space
        if said < len(WORDS):
            pictures.append(plain.step(WORDS[said])[0]["image"])
            seen = env.step(WORDS[said])[0]
    for count in (1, len(WORDS)):
        shown = np.concatenate(([pictures[0]] * history + pictures[: count + 1])[-history:])
        for _ in range(2):  # in a world that can be restored, the second time from a moment
            again = env.reset(seed=3, options={"actions": WORDS[:count]})[0]
            assert np.array_equal(again["image"], shown)
            assert again["last_action_2"] == [len(env.vocabulary), *WORDS][count - 1]
    assert len(env.moments) == (0 if world is DOORS else len(WORDS))
    plain.close()
    env.close()


def test_a_policy_with_a_memory_trains_and_plays_and_another_world_refuses_it(recipe_for, tmp_path):
    prompt = tmp_path / "memory.jinja"
    prompt.write_text("{{ image }}\n{{ last_action_2 }}, {{ last_action }}")
    sizes = {"num_workers": 1, "rollout_steps": 8, "batch_size": 8, "num_eval_episodes": 0}
    recipe = recipe_for(
        **DOORS, **sizes, history=2, frame_size=28, prompt_template=str(prompt), total_timesteps=32
    )
    run_training(recipe)
    assert metrics_of(recipe)[0]["first_ratio_error"] < 1e-5
    folder = str(tmp_path / "checkpoints" / "vlm-agent_step32")
    agent = load_agent(folder)
    assert agent.env.history == 2
    assert measure(agent, 2, 0, True, "validation", 1).episodes[0].length > 0
    with pytest.raises(UserError, match="last_action_2"):
        measure(load_agent(folder, change=lambda env: env.changed(history=1)), 1, 0, True, "test")


@pytest.mark.parametrize("history", [0, 17])
def test_a_history_is_a_number_of_pictures(history):
    with pytest.raises(ValueError, match="history"):
        EnvConfig(history=history)
