"""The same recipe and seed give the same weights, on several threads too."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RUN = """
import hashlib, sys, torch
from tests.short_runs import trainer_for
from tests.worlds import ColourPool
from vlm_agent import Recipe, VLMPolicy

torch.set_num_threads(2)
digests = []
for number in range(int(sys.argv[1])):
    recipe = Recipe.load(
        "quick", words="eight", scoring="auto", value_input="hidden", value_head_depth=1,
        num_envs=4, rollout_steps=32, batch_size=64, total_timesteps=128, report_to="none",
        num_eval_episodes=0, save_freq=10**6, output_dir=sys.argv[2], run_name=f"run_{number}",
    )
    policy = VLMPolicy.from_pretrained("starter")
    trainer = trainer_for(recipe, policy, pool=ColourPool(4, size=112))
    trainer.train()
    weights = b"".join(p.detach().numpy().tobytes() for p in policy.parameters())
    digests.append(hashlib.sha256(weights).hexdigest())
assert not torch.are_deterministic_algorithms_enabled()  # the switch is a run's, not the process's
print(*digests)
"""


@pytest.fixture
def digests(tmp_path) -> set[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, "4", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_four_runs_on_two_threads_end_with_the_same_weights(digests):
    assert len(digests) == 1
