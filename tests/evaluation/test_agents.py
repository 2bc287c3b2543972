"""Who can be evaluated, and what a policy is told."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.worlds import ColourPool
from vlm_agent import make_env
from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import SPLITS, episode_seed
from vlm_agent.evaluation.agents import Agent, ablated, load_agent, measure, template_for
from vlm_agent.evaluation.evaluate import play, speaker
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.facts import all_facts
from vlm_agent.world.instructions import Instructions
from vlm_agent.world.observations import Observations
from vlm_agent.world.registry import declare


def test_no_episode_is_in_two_splits():
    seeds = {
        split: {episode_seed(split, run, n) for run in range(3) for n in range(2000)}
        for split in SPLITS
    }
    assert all(len(found) == 6000 for found in seeds.values())
    assert all(seed % 4 == SPLITS.index(split) for split in SPLITS for seed in seeds[split])


def test_random_words_are_drawn_evenly():
    agent = load_agent("random")
    uniforms = (np.arange(800) + 0.5) / 800
    blank = Observations(np.zeros((800, 28, 28, 3), np.uint8), np.zeros((800, 4), np.int32))
    assert np.bincount(agent.speak(blank, uniforms)).tolist() == [100] * len(MOTIONS)
    done = play(agent.speak, ColourPool(4), range(4), 0, greedy=False)
    assert len({word for episode in done.values() for word in episode.actions}) > 3


def test_the_expert_is_measured_on_the_episodes_of_the_split():
    agent = Agent("expert", EnvConfig(task="Lift", frame_size=28))
    result = measure(agent, 2, seed=5, greedy=True, split="test")
    assert result.success_rate == 1.0
    assert [e.seed for e in result.episodes] == [episode_seed("test", 5, n) for n in (0, 1)]
    assert (result.about["policy"], result.about["split"]) == ("expert", "test")
    assert result.mean_return > 1.5


def test_tiny_is_the_starters_model_without_what_it_learnt(make_observations):
    starter, tiny = load_agent("starter"), load_agent("tiny")
    assert (tiny.env, tiny.gamma, tiny.words) == (starter.env, starter.gamma, starter.words)
    source = (ROOT / "prompts" / "minimal.jinja").read_text()
    task = "Pick up the can and put it into its bin."
    untrained = build_policy(ModelConfig(), PromptTemplate(source, task), seed=0)
    seen, uniforms = make_observations(64, size=112), np.linspace(0, 0.999, 64)
    said = tiny.speak(seen, uniforms).tolist()
    assert said == speaker(untrained)(seen, uniforms).tolist()
    assert said != starter.speak(seen, uniforms).tolist()


def test_the_experts_earlier_name_still_works():
    assert load_agent("oracle") == load_agent("expert")


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="no policy in the folder 'orakel'"):
        load_agent("orakel")


@pytest.mark.parametrize(
    ("ablate", "moves_with_image", "moves_with_facts"),
    [("none", True, True), ("image", False, True), ("prompt", True, False)],
)
def test_an_ablated_policy_does_not_know(
    policy, make_observations, ablate, moves_with_image, moves_with_facts
):
    def scores(observations, uniforms):
        with torch.no_grad():
            return policy(**policy.encode(observations)).logits.numpy()

    template = policy.encoder.template
    speak = ablated(scores, ablate, template) if ablate != "none" else scores
    one, two = make_observations(4), make_observations(4, seed=1)
    other_facts = one.facts[::-1].copy()
    with_image = speak(Observations(two.frames, one.facts), None)
    with_facts = speak(Observations(one.frames, other_facts), None)
    assert np.array_equal(speak(one, None), with_image) != moves_with_image
    assert np.array_equal(speak(one, None), with_facts) != moves_with_facts


def test_without_the_prompts_facts_it_is_always_the_beginning(template, make_observations):
    """No word has been said, and all of them are left: 120, as the observations have it."""
    told = []
    ablated(lambda seen, _: told.append(seen.facts), "prompt", template)(make_observations(3), None)
    assert told[0].tolist() == [[0, 8, 0, 120]] * 3


def test_a_result_says_what_the_policy_was_not_told():
    config = EnvConfig(task="Lift", frame_size=28, horizon=1)
    agent = dataclasses.replace(load_agent("random"), env=config, ablate="image")
    result = measure(agent, 1, 0, True, "test")
    assert (result.about["ablate"], result.about["greedy"]) == ("image", False)


def test_another_goals_instruction_is_told_in_place_of_the_right_one():
    instructions = Instructions({"red": ["Red!", "Go red."], "blue": ["Blue!"]})
    facts = all_facts((), ("go", "stay"), instructions.sentences)
    template = PromptTemplate("{{ image }}{{ task }}", "Red!", words=("go", "stay"), facts=facts)
    heard: list[np.ndarray] = []

    def speak(observations, uniforms):
        heard.append(observations.facts)
        return np.zeros(len(observations), int)

    told = np.array([[2, 0, 9, 0], [2, 0, 9, 1], [2, 0, 9, 2]], np.int32)
    seen = Observations(np.zeros((3, 28, 28, 3), np.uint8), told.copy())
    ablated(speak, "instruction", template, instructions)(seen, None)
    assert [template.render(row)[1] for row in heard[0]] == ["Blue!", "Blue!", "Red!"]
    assert np.array_equal(heard[0][:, :3], told[:, :3])
    assert np.array_equal(seen.facts, told)
    with pytest.raises(UserError, match="--ablate instruction: this world has one goal alone"):
        ablated(speak, "instruction", template, Instructions(["Go.", "Please go."]))


def test_in_another_world_a_policy_is_told_that_worlds_sentences():
    one = declare(EnvConfig(task="Lift"))
    several = declare(EnvConfig(tasks=["Lift", "Stack"]))
    alone = PromptTemplate("{{ image }}{{ task }}", "Grab the cube.")
    assert template_for(alone, one) is alone
    told = template_for(alone, several)
    assert told.fact_names == (*alone.fact_names, "instruction")
    assert told.render((0, 8, 0, 9, 1))[1] == "Put the red cube on the green cube."
    assert template_for(told, several) is told
    again = template_for(told, one)
    assert again.fact_names == alone.fact_names
    assert again.render((0, 8, 0, 9))[1] == "Lift the red cube off the table."


@pytest.mark.parametrize("name", ["minimal", "default"])
def test_no_privileged_state_reaches_the_policy(name):
    """Only the picture and the facts that the prompt names move the scores."""
    source = (ROOT / "prompts" / f"{name}.jinja").read_text()
    policy = build_policy(ModelConfig(), PromptTemplate(source, "Lift the cube."), seed=0).eval()
    env = make_env("Lift", frame_size=56)
    env.render_mode = "rgb_array"
    seen, _ = env.reset(seed=1)

    def scores(observation) -> np.ndarray:
        batch = Observations.stack([Observations.from_env(observation, policy.facts)])
        with torch.no_grad():
            return policy(**policy.encode(batch)).logits.numpy()

    usual = scores(seen)
    for fact in policy.facts:
        told = "{{ " + fact + " }}" in source
        moved = not np.array_equal(scores(seen | {fact: np.int64(1 - seen[fact] % 2)}), usual)
        assert moved == told, fact
    # Where the cube is, how it moves and what the expert would do is in the simulator alone: with
    # the cube in one and another place that the camera cannot see, nothing changes.
    scene, hidden = env.world.scene, []
    joint = scene.env.cube.joints[0]
    for place in ((-2.0, 0.0, 0.5), (-2.5, 1.0, 0.1)):
        scene.env.sim.data.set_joint_qpos(joint, [*place, 1, 0, 0, 0])
        scene.env.sim.data.set_joint_qvel(joint, np.full(6, place[2]))
        scene.resting_height = place[2]
        scene.env.sim.forward()
        picture = env.render()
        hidden.append(scores(seen | {"image": picture, "object_position": place}))
    env.close()
    assert np.array_equal(*hidden)
    assert not np.array_equal(hidden[0], usual)  # for the cube was in the first picture
