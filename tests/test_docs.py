"""What docs/worlds.md shows is run: its modules, its recipes, its mistakes."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from tests.conftest import ROOT
from tests.short_runs import metrics_of
from vlm_agent import Recipe, make_env
from vlm_agent.common.errors import UserError
from vlm_agent.ppo.run import run_training
from vlm_agent.world.episode import Episode
from vlm_agent.world.robosuite.appearance.randomize import RANDOMIZE

WORLDS = (ROOT / "docs" / "worlds.md").read_text()
BLOCKS = re.findall(
    r"^```(?:python|yaml|jinja)\n(?:#|\{#) (\w+\.\w+)(?: #\})?\n(.*?)^```", WORLDS, re.M | re.S
)
RECIPES = [name for name, _ in BLOCKS if name.endswith(".yaml")]
MISTAKES = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", WORLDS.partition("## When something")[2], re.M)

SMALL = {"num_envs": 2, "num_workers": 1, "rollout_steps": 8, "batch_size": 8, "n_epochs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("worlds")
    modules, known = set(sys.modules), set(gymnasium.registry)
    for name, text in BLOCKS:
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == folder:
            del sys.modules[name]
    for name in set(gymnasium.registry) - known:
        del gymnasium.registry[name]


def test_every_recipe_is_there():
    assert len(RECIPES) == len(set(RECIPES)) >= 10
    assert len(MISTAKES) >= 10


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_its_world_and_each_of_its_words_can_be_said(folder: Path, name: str):
    recipe = Recipe.load(folder / name)
    env = make_env(recipe.env)
    expert = env.world.expert() if env.world.spec.has_expert else None
    observation, _ = env.reset(seed=1)
    for word in range(len(env.vocabulary)):
        if expert is not None:
            assert env.vocabulary.word(expert.act())
        observation, _, terminated, truncated, _ = env.step(word)
        assert observation in env.observation_space
        told = [observation[fact.name] for fact in env.facts]
        assert "{{" not in "".join(recipe.template.render(told))
        if terminated or truncated:
            env.reset(seed=2 + word)
    env.close()


@pytest.mark.parametrize("name", ["hurry", "grouped"])
def test_a_recipe_trains(folder: Path, name: str):
    recipe = Recipe.load(
        folder / f"{name}.yaml",
        output_dir=str(folder),
        run_name=name,
        total_timesteps=16,
        num_eval_episodes=0,
        freeze_vision=True,
        **{**SMALL, "num_envs": 4},
    )
    run_training(recipe)
    assert metrics_of(recipe)[-1]["timesteps"] >= 16


def test_the_table_of_what_changes_is_that_of_the_code():
    rows = [f"| `{key}` | {what.expected} | {what.help} |" for key, what in RANDOMIZE.items()]
    assert "\n".join(rows) in WORLDS


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_with_its_key(folder: Path, mistake: str, sentence: str):
    """Each is a setting more in keys.yaml, or something else in its module."""
    name, recipe = "keys", (folder / "keys.yaml").read_text()
    right, _, wrong = mistake.partition(" → ")
    if wrong:
        name = f"mistake_{MISTAKES.index((mistake, sentence))}"
        module = (folder / "keys.py").read_text()
        assert right in module
        (folder / f"{name}.py").write_text(
            module.replace(right, wrong).replace("Keys-", f"{name}-")
        )
        recipe = recipe.replace("keys:Keys-", f"{name}:{name}-")
    elif mistake.startswith("env: "):
        recipe = recipe.replace("env: keys:Keys-v0", mistake)
    else:
        recipe += mistake + "\n"
    path = folder / f"{name}_wrong.yaml"
    path.write_text(recipe)
    with pytest.raises(UserError) as refused:
        recipe = Recipe.load(path, **SMALL)
        with recipe.make_pool() as pool:
            pool.reset({0: Episode(0)})
            pool.step({0: 0})
    message = str(refused.value)
    assert sentence in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("recipe", "results", "env"),
    [
        ("minigrid", "minigrid", "minigrid:MiniGrid-Empty-5x5-v0"),
        ("minigrid_goto", "minigrid", "vlm_agent.world.gym.minigrid:GoToDoor-v0"),
        ("fetch_reach", "fetch", "vlm_agent.world.gym.fetch:Reach-v0"),
        ("fetch_push", "fetch", "vlm_agent.world.gym.fetch:Push-v0"),
        ("fetch_pick", "fetch", "vlm_agent.world.gym.fetch:PickAndPlace-v0"),
    ],
)
def test_the_figures_of_the_worlds_are_those_of_their_results(recipe, results, env):
    rows = json.loads((ROOT / "recipes" / "results" / f"{results}.json").read_text())["rows"]
    rates = {
        row["policy"]: f"{100 * row['success_rate']:.0f} %"
        for row in rows
        if row["env"] == env and row["ablate"] == "none"
    }
    told = [rates.get(policy, "–") for policy in ("expert", "random", recipe)]
    assert f"| `{recipe}` | {' | '.join(told)} |" in WORLDS
