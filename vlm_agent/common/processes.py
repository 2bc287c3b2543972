"""``in_processes``: the same done to many things in a few processes, in order."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from vlm_agent.common.errors import UserError
from vlm_agent.common.lifetime import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    do: Callable[[Item], Result],
    items: Sequence[Item],
    begin: Callable[..., None],
    arguments: tuple[Any, ...] = (),
    *,
    workers: int = 0,
    timeout: float = 600.0,
    what: str = "work",
) -> Iterator[Result]:
    """What comes of each item, in order.

    Args:
        do: Done to each item, in some process; importable.
        items: What it is done to.
        begin: Called once in each process, before.
        arguments: Of ``begin``.
        workers: Processes; 0 for one per core.
        timeout: Seconds to wait for a result, when those before it are there.
        what: Names the processes in a message.

    Raises:
        UserError: One of the processes could not start, was killed or hangs.
    """
    if not items:
        return
    count = min(len(items), workers or len(os.sched_getaffinity(0)))
    ready = (begin, arguments)
    with ProcessPoolExecutor(count, mp.get_context("spawn"), _begin, ready) as processes:
        try:
            waiting = deque(processes.submit(do, item) for item in items)
            while waiting:  # one that was taken is not kept: it may be large
                yield waiting.popleft().result(timeout)
        except TimeoutError:
            raise UserError(
                f"{what} has given nothing for {timeout:.0f} s: its processes were stopped, or "
                "this machine is too slow (worker_timeout)"
            ) from None
        except BrokenProcessPool:
            raise UserError(
                f"a process of {what} could not start, or was killed: see above, and whether "
                "vlm-agent doctor finds that this machine can render"
            ) from None
        finally:
            started = list((processes._processes or {}).values())
            processes.shutdown(wait=False, cancel_futures=True)
            for process in started:  # one that was stopped would be waited for without end
                process.kill()


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ.setdefault("LP_NUM_THREADS", "0")  # as in a pool's workers
    begin(*arguments)
