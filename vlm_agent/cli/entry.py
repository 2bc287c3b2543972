"""What every command does around its own work."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from vlm_agent.common.errors import Stopped, TrainingError, UserError
from vlm_agent.distributed.stopping import exit_code

OTHERS_SAY_S = 3.0
"""What is wrong with a recipe or a folder, all processes of a run find: the first one says it, and
its launcher ends the others, unless only they have found it."""


LESS = (
    "Less is needed with a smaller micro_batch_size, num_envs, num_workers or feature_cache_gb, "
    "gradient_checkpointing: true, or load_in_4bit: true; vlm-agent plan --config RECIPE says what "
    "each part takes"
)


def run_command(main: Callable[[], int | None]) -> int:
    """Run ``main``; an error that is meant for people becomes a message on stderr.

    Returns:
        The exit code: 2 for a :class:`UserError`, 1 for a :class:`TrainingError` or where there is
        not enough memory, for :class:`Stopped` as :func:`exit_code` says.
    """
    try:
        return main() or 0
    except UserError as error:
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(OTHERS_SAY_S)
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
    except (MemoryError, RuntimeError, ImportError) as error:
        if not _is_of_memory(error):
            raise
        first = (str(error).splitlines() or ["it was refused"])[0]
        print(f"\nvlm-agent: the run stopped: not enough memory: {first}. {LESS}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvlm-agent: interrupted", file=sys.stderr)
        return 130


def _is_of_memory(error: BaseException) -> bool:
    """Whether the machine or its GPU has no more memory; each library says so in its own way."""
    is_torchs = type(error).__name__ == "OutOfMemoryError"
    text = str(error)
    said = ("can't allocate memory", "Cannot allocate memory", "failed to map segment")
    return isinstance(error, MemoryError) or is_torchs or any(words in text for words in said)
