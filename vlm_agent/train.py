"""PPO training: ``accelerate launch -m vlm_agent.train --config RECIPE [--key value …]``."""

from __future__ import annotations

import functools
import sys

from vlm_agent.cli.entry import run_command
from vlm_agent.cli.learn import train

main = functools.partial(train, prog="accelerate launch -m vlm_agent.train")

if __name__ == "__main__":
    sys.exit(run_command(main))
