"""``make sabotage``: break the code on purpose, and see that a test notices.

Each sabotage is a change of one place, in a copy of the repository, and the tests that are to fail
with it. A sabotage whose text is not there any more is an error: it has to follow the code.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Sabotage:
    """What is broken, where, how, and which tests have to notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


SABOTAGES = (
    Sabotage(
        "drop the optimiser's state",
        "vlm_agent/ppo/trainer.py",
        "        self.learner.load_optimizer_state(load_file(folder / OPTIMIZER_FILE))\n",
        "",
        "tests/runs/test_stopping.py -k wherever",
    ),
    Sabotage(
        "skip the rename",
        "vlm_agent/common/whole.py",
        "        _replace(partial, folder)\n",
        "        remove(folder)\n        shutil.copytree(partial, folder)\n",
        "tests/runs/test_integrity.py -k stopped_anywhere",
    ),
    Sabotage(
        "skip the manifest",
        "vlm_agent/policy/artifact.py",
        "        check_whole(folder)\n",
        "        pass\n",
        "tests/runs/test_integrity.py -k damage",
    ),
    Sabotage(
        "swallow a worker's death",
        "vlm_agent/world/pool/supervisor.py",
        "            logger.warning(text, index, str(failure), times, what, len(standing))\n",
        "",
        "tests/world/test_pool.py -k killed_worker",
    ),
    Sabotage(
        "look at the gradient after the step",
        "vlm_agent/distributed/learner.py",
        "        check_finite(norm, self.accelerator, where)\n        self.optimizer.step()\n",
        "        self.optimizer.step()\n        check_finite(norm, self.accelerator, where)\n",
        "tests/ppo/test_update.py -k not_finite",
    ),
    Sabotage(
        "treat truncation as termination",
        "vlm_agent/ppo/advantages.py",
        "    alive_TN = 1.0 - np.asarray(terminated_TN, np.float64)\n",
        "    alive_TN = 1.0 - np.asarray(terminated_TN | truncated_TN, np.float64)\n",
        "tests/ppo/test_advantages.py",
    ),
    Sabotage(
        "forget to replay",
        "vlm_agent/world/pool/supervisor.py",
        "                if standing and self.replays:\n",
        "                if False:\n",
        "tests/world/test_pool.py -k killed_worker",
    ),
    Sabotage(
        "prune before writing",
        "vlm_agent/runs/callbacks.py",
        "            trainer.save()\n            limit = trainer.recipe.run.save_total_limit\n"
        "            if limit is not None and trainer.accelerator.is_main_process:\n"
        "                trainer.folders.keep_latest(limit)  # when the newest one is whole\n",
        "            limit = trainer.recipe.run.save_total_limit\n"
        "            if limit is not None and trainer.accelerator.is_main_process:\n"
        "                trainer.folders.keep_latest(limit - 1)\n            trainer.save()\n",
        "tests/ppo/test_trainer.py -k so_many",
    ),
    Sabotage(
        "accept unknown keys",
        "vlm_agent/recipe/recipe.py",
        "for key in values if key not in known}\n",
        "for key in values if False}\n",
        "tests/recipe/test_recipe.py",
    ),
    Sabotage(
        "unseed the shuffle",
        "vlm_agent/ppo/minibatches.py",
        '        rng = derive_rng(self.seed, "shuffle", self.rank, self.update, epoch)\n',
        "        import numpy\n\n        rng = numpy.random.default_rng()\n",
        "tests/ppo/test_trainer.py -k same_metrics",
    ),
    Sabotage(
        "ignore the second signal",
        "vlm_agent/distributed/stopping.py",
        "            os._exit(128 + number)  # workers end with this process\n",
        "            pass\n",
        "tests/runs/test_stopping.py -k second_signal",
    ),
    Sabotage(
        "allow auto_map",
        "vlm_agent/policy/strangers.py",
        '    "auto_map",\n',
        "",
        "tests/policy/test_strangers.py",
    ),
)


def main() -> int:
    """Try all; 0 if each was noticed."""
    missed = 0
    for sabotage in SABOTAGES:
        with tempfile.TemporaryDirectory() as folder:
            noticed = is_noticed(sabotage, Path(folder) / "vlm-agent")
        missed += not noticed
        print(f"{sabotage.name:<40}{'noticed' if noticed else 'MISSED'}", flush=True)
    print(f"{len(SABOTAGES) - missed} of {len(SABOTAGES)} noticed")
    return int(missed > 0)


def is_noticed(sabotage: Sabotage, copy: Path) -> bool:
    """Whether its tests fail, which pass without it, in a copy of the repository."""
    names = ("vlm_agent", "tests", "recipes", "prompts", "accelerate_configs", "docs")
    for name in names:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, copy / name)
    path = copy / sabotage.file
    source = path.read_text()
    if source.count(sabotage.before) != 1:
        raise SystemExit(f"{sabotage.name}: its text is not in {sabotage.file} once")
    path.write_text(source.replace(sabotage.before, sabotage.after))
    command = [sys.executable, "-m", "pytest", "-q", "-x", *sabotage.tests.split()]
    done = subprocess.run(command, cwd=copy, capture_output=True, check=False, timeout=900)
    return done.returncode == 1  # 2 to 5: no test has run


if __name__ == "__main__":
    sys.exit(main())
