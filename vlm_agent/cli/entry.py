"""What every command does around its own work."""

from __future__ import annotations

import sys
from collections.abc import Callable

from vlm_agent.common.errors import Stopped, TrainingError, UserError
from vlm_agent.distributed.stopping import exit_code


def run_command(main: Callable[[], int | None]) -> int:
    """Run ``main``; an error that is meant for people becomes a message on stderr.

    Returns:
        The exit code: 2 for a :class:`UserError`, 1 for a :class:`TrainingError`, for
        :class:`Stopped` as :func:`exit_code` says.
    """
    try:
        return main() or 0
    except UserError as error:
        print(f"vlm-agent: error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"\nvlm-agent: the run stopped: {error}", file=sys.stderr)  # below its bar
        return 1
    except Stopped as stopped:
        where = f" at {stopped.folder}" if stopped.folder else ""
        print(
            f"\nvlm-agent: stopped by {stopped.reason}{where}; the same command with --resume_from "
            "auto goes on",
            file=sys.stderr,
        )
        return exit_code(stopped.reason)
    except KeyboardInterrupt:
        print("\nvlm-agent: interrupted", file=sys.stderr)
        return 130
