"""Warm start: ``accelerate launch -m vlm_agent.sft --config RECIPE [--key value …]``."""

from __future__ import annotations

import functools
import sys

from vlm_agent.cli.entry import run_command
from vlm_agent.cli.learn import sft

main = functools.partial(sft, prog="accelerate launch -m vlm_agent.sft")

if __name__ == "__main__":
    sys.exit(run_command(main))
