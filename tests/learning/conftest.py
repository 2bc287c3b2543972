"""What the tests of learning share: recipes for short runs, and a clean accelerate."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

from tests.conftest import ROOT
from vlm_agent.recipe.recipe import Recipe, make_recipe


@pytest.fixture(autouse=True)
def forget_accelerate():
    """Accelerate keeps one state per process; each test gets its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def recipe_for(tmp_path):
    def make(**settings) -> Recipe:
        values = {
            "prompt_template": "prompts/minimal.jinja",
            "output_dir": str(tmp_path),
            "num_envs": 4,
            "rollout_steps": 8,
            "total_timesteps": 96,
            "batch_size": 8,
            "n_epochs": 2,
            "num_eval_episodes": 0,
            "save_freq": 10**9,
            "learning_rate": 1e-3,
        }
        return make_recipe(values | settings, [ROOT])

    return make
