"""PPO training: ``accelerate launch -m vlm_agent.train --config RECIPE [--key value …]``.

Environment workers import this module again when they start, so everything heavy is imported
inside ``main``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vlm_agent.cli.entry import run_command
from vlm_agent.common.lifetime import end_with_launcher


def main(argv: Sequence[str] | None = None) -> int:
    """Read and check the recipe, train, and say where everything lies."""
    end_with_launcher()

    from vlm_agent.recipe.recipe import load_recipe

    recipe = load_recipe(argv, prog="accelerate launch -m vlm_agent.train")

    from vlm_agent.ppo.run import run_training

    run_training(recipe)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
