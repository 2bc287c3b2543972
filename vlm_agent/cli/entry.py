"""What every command does around its own work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from vlm_agent.common.errors import UserError


def run_command(main: Callable[[], int | None]) -> int:
    """Run ``main``; a :class:`UserError` becomes a message on stderr and exit code 2."""
    # torch's threads otherwise wait for each other by spinning, and where anything else wants a
    # core, a small model's forward pass takes ten times as long. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return main() or 0
    except UserError as error:
        print(f"vlm-agent: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlm-agent: interrupted", file=sys.stderr)
        return 130
