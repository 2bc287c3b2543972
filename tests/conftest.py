"""What several tests share: the tiny policy, random observations, one robot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch and MuJoCo are imported: tests run side by side, one thread each is fastest.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe, make_recipe
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.observations import Observations

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=1, help="how often to kill a pool's parent")
    parser.addoption("--long", action="store_true", help="the tests that are marked long, too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_" in metafunc.fixturenames:
        metafunc.parametrize("round_", range(metafunc.config.getoption("rounds")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("long"):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def drawn_as_ever() -> None:
    """Random weights and inputs are those of the last run, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def template() -> PromptTemplate:
    source = (ROOT / "prompts" / "minimal.jinja").read_text()
    return PromptTemplate(source, "Pick up the can.")


@pytest.fixture
def make_policy(template: PromptTemplate) -> Callable[..., VLMPolicy]:
    """A fresh tiny policy; keywords are settings of ``ModelConfig``."""

    def make(seed: int = 0, **settings: object) -> VLMPolicy:
        return build_policy(ModelConfig(**settings), template, seed)

    return make


@pytest.fixture
def policy(make_policy: Callable[..., VLMPolicy]) -> VLMPolicy:
    return make_policy()


@pytest.fixture
def make_observations() -> Callable[..., Observations]:
    """Random frames with facts whose prompts have different lengths."""

    def make(count: int, size: int = 56, seed: int = 0) -> Observations:
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        facts = np.stack(
            [
                rng.integers(0, 2, count),
                np.arange(count) % (len(MOTIONS) + 1),
                np.arange(count),
                120 - np.arange(count),
            ],
            axis=1,
        ).astype(np.int32)
        return Observations(frames, facts)

    return make


@pytest.fixture(scope="module")
def can_env() -> Iterator[LanguageActionEnv]:
    """The default scene with small pictures; building it takes seconds, so it is shared."""
    env = LanguageActionEnv(EnvConfig(frame_size=56))
    yield env
    env.close()


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
