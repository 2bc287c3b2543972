import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.world.faulty import FAULT_SEED, Faulty
from vlm_agent.common.errors import UserError
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.handle import words_to_replay
from vlm_agent.world.pool.pool import EnvPool
from vlm_agent.world.pool.worker import Step

CONFIG = EnvConfig(task="Lift", frame_size=56, horizon=5)
NUM_ENVS = 3
STEPS = 12
HORIZONS = [5, 4, 3]  # some episodes have less time than the scene gives
ROOT = Path(__file__).parents[2]


def pool_of(num_workers: int, **options) -> EnvPool:
    return EnvPool(CONFIG, NUM_ENVS, num_workers, privileged_state=True, **options)


def play(pool: EnvPool, groups: int = 1, disturb=lambda step: None) -> list[np.ndarray]:
    """Every array of a session with new episodes in between, step by step, in env order."""
    rng = np.random.default_rng(0)
    actions_TN = rng.integers(8, size=(STEPS, NUM_ENVS))
    parts = np.array_split(np.arange(NUM_ENVS), groups)
    first = pool.reset({i: Episode(i, (4,) * i, max(4, HORIZONS[i])) for i in range(NUM_ENVS)})
    begun = [0] * NUM_ENVS
    arrays = [first.frames, first.facts]
    steps: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(STEPS)]

    def hear(step: int, part: np.ndarray) -> None:
        batch = pool.finish_step()
        for n, i in enumerate(part):
            begun[i] += int(batch.terminated[n] or batch.truncated[n])
        steps[step].append(
            (
                batch.observations.frames,
                batch.observations.facts,
                batch.next_observations.frames,
                batch.next_observations.facts,
                batch.rewards,
                batch.terminated,
                batch.truncated,
                batch.observations.states,
                batch.next_observations.states,
            )
        )

    for step in range(STEPS):
        for part in parts:
            if step:
                hear(step - 1, part)
            pool.start_step(
                {int(i): int(actions_TN[step, i]) for i in part},
                {int(i): Episode(100 + 10 * int(i) + begun[i], (), HORIZONS[i]) for i in part},
            )
            disturb(step)
    for part in parts:
        hear(STEPS - 1, part)
    for answers in steps:
        arrays += [np.concatenate(array) for array in zip(*answers, strict=True)]
    return arrays


@pytest.fixture(scope="module")
def undisturbed() -> list[np.ndarray]:
    with pool_of(1) as pool:
        return play(pool)


def assert_same(arrays: list[np.ndarray], others: list[np.ndarray]) -> None:
    assert len(arrays) == len(others)
    for one, other in zip(arrays, others, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_results_depend_neither_on_workers_nor_on_groups(undisturbed):
    with pool_of(3) as pool:
        assert pool.num_workers == 3
        assert_same(play(pool), undisturbed)
        assert_same(play(pool, groups=2), undisturbed)
        assert_same(play(pool, groups=3), undisturbed)


def test_new_episodes_begin_where_one_ended(undisturbed):
    """What is acted on next is the fresh episode, and the last picture is kept."""
    after, next_facts = undisturbed[3::9], undisturbed[5::9]  # facts: step counts at index 2
    truncated = np.array(undisturbed[8::9])
    states, next_states = undisturbed[9::9], undisturbed[10::9]
    assert truncated.sum() >= NUM_ENVS
    for step, ended in enumerate(truncated):
        first_time = ~np.logical_or.reduce(truncated[:step])
        horizons = np.where(first_time, np.maximum(4, HORIZONS), HORIZONS)
        assert (after[step][ended, 2] == horizons[ended]).all()
        assert (next_facts[step][ended, 2] == 0).all()
        assert np.array_equal(after[step][~ended], next_facts[step][~ended])
        assert np.array_equal(states[step][~ended], next_states[step][~ended])
        assert not (states[step][ended] == next_states[step][ended]).all(-1).any()
    fresh_frames = undisturbed[4::9]
    with pool_of(2) as pool:
        expected = pool.reset({i: Episode(100 + 10 * i, ()) for i in range(NUM_ENVS)})
    for i in range(NUM_ENVS):
        first_end = truncated[:, i].argmax()
        assert np.array_equal(fresh_frames[first_end][i], expected.frames[i])
        assert np.array_equal(next_states[first_end][i], expected.states[i])


def test_answers_come_in_the_order_asked_for():
    with EnvPool(CONFIG, 2, 2) as pool:
        ahead = pool.reset({0: Episode(0, ()), 1: Episode(1, (4,))})
        back = pool.reset({1: Episode(1, (4,)), 0: Episode(0, ())})
        assert ahead.facts[:, 2].tolist() == [0, 1]
        assert ahead.states is None  # nobody asked
        assert np.array_equal(ahead.frames[::-1], back.frames)
        assert pool.step({1: 0, 0: 3}).observations.facts[:, 1].tolist() == [0, 3]
        with pytest.raises(UserError, match="the words are 0 to 7"):
            pool.step({0: 8})
        assert set(pool.seconds) == {"physics", "rendering", "waiting"}
        assert min(pool.seconds.values()) > 0


def test_a_killed_worker_changes_nothing(undisturbed, caplog):
    victim = 0
    with pool_of(2) as pool:

        def disturb(step: int) -> None:
            if step == 7 and not sum(pool.restarts):
                os.kill(pool.worker_pids()[victim], signal.SIGKILL)

        assert_same(play(pool, groups=2, disturb=disturb), undisturbed)
        assert pool.restarts[victim] == 1
        assert sum(pool.restarts) == 1
    assert f"environment worker {victim} died (SIGKILL)" in caplog.text
    assert "replaying its 2 episodes" in caplog.text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        # Of a kind that could be taken for a closed pipe.
        ("EOFError", r"raised an exception:\n(.|\n)*EOFError: truncated asset"),
        ("SIGSEGV", r"died \(SIGSEGV\):\nFatal Python error: Segmentation fault(.|\n)*faulty.py"),
        ("hang", r"gave no answer for 6 s:\n(.|\n)*in fail\n(.|\n)*faulty.py"),
    ],
)
def test_faults_inside_a_worker_change_nothing(
    undisturbed, fault: str, message: str, caplog, tmp_path
):
    with pool_of(2, timeout=6.0, make_env=Faulty(fault, tmp_path / "marker")) as pool:
        assert_same(play(pool, groups=2), undisturbed)
        assert pool.restarts == [0, 1]  # the episode with that seed begins in environment 1
    assert FAULT_SEED == 1
    assert (tmp_path / "marker").exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert re.search(message, caplog.text)


def test_a_worker_that_keeps_failing_is_an_error_with_its_traceback(tmp_path):
    always = Faulty("exception", tmp_path / "marker", is_lasting=True)
    with EnvPool(CONFIG, 2, 1, max_restarts=1, make_env=always) as pool:
        pool.reset({0: Episode(0, ()), FAULT_SEED: Episode(FAULT_SEED, (4, 4))})
        with pytest.raises(UserError) as error:
            pool.step({0: 0, 1: 0})
        assert pool.restarts == [1]
    text = str(error.value)
    assert "worker 0 failed again after 1 restarts (max_worker_restarts)" in text
    assert "RuntimeError: the arm fell off" in text
    assert "in _do" in text  # the worker's own stack


def test_a_replay_that_leads_elsewhere_is_an_error(tmp_path):
    drifting = Faulty("exception", tmp_path / "marker", drifts=True)
    with EnvPool(CONFIG, 2, 1, make_env=drifting) as pool:
        pool.reset({0: Episode(0, ()), FAULT_SEED: Episode(FAULT_SEED, (4, 4))})
        with pytest.raises(
            UserError, match=r"environment 0 did not replay: seed 0 and its 0 words"
        ):
            pool.step({0: 0, 1: 0})


def test_a_worker_that_dies_while_it_starts_is_restarted(undisturbed):
    with pool_of(1) as pool:
        os.kill(pool.worker_pids()[0], signal.SIGKILL)
        assert_same(play(pool), undisturbed)
        assert pool.restarts == [1]


def test_a_step_under_way_stands_in_the_way_of_others_but_not_of_closing():
    with EnvPool(CONFIG, 2, 1) as pool:
        pool.reset({0: Episode(0, ()), 1: Episode(1, ())})
        pool.start_step({0: 3})
        with pytest.raises(RuntimeError, match="under way: finish it before a reset"):
            pool.reset({1: Episode(7, ())})
        with pytest.raises(RuntimeError, match="under way in one of these environments"):
            pool.start_step({0: 3, 1: 3})
        pool.start_step({1: 2})
        assert pool.finish_step().observations.facts[0, 1] == 3
        assert pool.finish_step().observations.facts[0, 1] == 2
        pool.start_step({0: 0, 1: 0})
        workers = pool.worker_pids()
        pool.close()
        pool.close()
        assert not any(map(is_running, workers))


def test_an_environment_that_cannot_be_built_is_an_error_at_once():
    with pytest.raises(UserError, match="'PickPlaceCam'.*'PickPlaceCan'"):
        EnvPool(EnvConfig(task="PickPlaceCam"), 1)


def test_a_privileged_state_that_nobody_can_name_is_refused():
    config = EnvConfig(env="CartPole-v1", words={"left": 0, "right": 1})
    with pytest.raises(UserError, match="value_input: 'state', or state_coef: this world tells no"):
        EnvPool(config, 1, privileged_state=True)


def test_words_that_are_said_again_get_time():
    """Also those of an episode that is only begun where another ends."""
    played, fresh = Episode(1, (4,) * 150), Episode(2, ())
    assert words_to_replay({0: played, 1: fresh}) == 150
    assert words_to_replay({0: Step(3, played), 1: Step(3, fresh), 2: Step(3)}) == 150


def test_nothing_is_left_behind(tmp_path):
    """Neither open files nor temporary ones, also after a restart."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.world.two_pools"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    # multiprocessing keeps a few of its own from the first pool on.
    without_restart, with_restart = map(int, child.stdout.split())
    assert without_restart == with_restart
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "exception"])
def test_no_worker_outlives_its_parent(how: str, round_: int):
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.world.parent", how],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in workers)
    if how != "exception":
        parent.send_signal(signal.Signals[how])
    parent.wait(30)
    deadline = time.monotonic() + 5
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # ended, but nobody has asked how


class Impatient(EnvPool):
    """Somebody presses Ctrl-C while a step is waited for."""

    def finish_step(self):
        if self.is_interrupted:
            self._begun.popleft()
            raise KeyboardInterrupt
        return super().finish_step()

    is_interrupted = False


def test_who_uses_the_pool_after_an_interruption_hears_nothing_of_the_step_before_it():
    episodes = {0: Episode(0, ()), 1: Episode(1, (2,))}
    with Impatient(CONFIG, 2, 1) as pool:
        first = pool.reset(episodes)
        pool.is_interrupted = True
        with pytest.raises(KeyboardInterrupt):
            pool.step({0: 3, 1: 3})
        pool.is_interrupted = False
        again = pool.reset(episodes)
        assert np.array_equal(first.frames, again.frames)
        assert np.array_equal(first.facts, again.facts)
        assert pool.step({0: 3, 1: 3}).observations.facts[:, 1].tolist() == [3, 3]
        pool.start_step({0: 1, 1: 1})
        pool.abandon_steps()
        assert np.array_equal(pool.reset(episodes).facts, first.facts)


def test_a_closed_pool_says_so():
    pool = EnvPool(CONFIG, 1, 1)
    pool.reset({0: Episode(0)})
    pool.close()
    with pytest.raises(UserError, match="the pool is closed"):
        pool.reset({0: Episode(1)})
