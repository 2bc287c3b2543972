import numpy as np
import pytest

from vlm_agent.errors import UserError
from vlm_agent.robot.config import EnvConfig
from vlm_agent.robot.episode import Episode
from vlm_agent.robot.pool import EnvPool

CONFIG = EnvConfig(task="Lift", frame_size=56, horizon=6)


def play(num_workers: int) -> list[np.ndarray]:
    """Every array of a short session in three environments, one of them restarted."""
    rng = np.random.default_rng(0)
    with EnvPool(CONFIG, 3, num_workers) as pool:
        assert pool.num_workers == num_workers
        arrays = [pool.reset({i: Episode(i, ()) for i in range(3)}).frames]
        for _ in range(3):
            batch = pool.step({i: int(rng.integers(8)) for i in range(3)})
            arrays += [batch.observations.frames, batch.observations.facts, batch.rewards]
            arrays += [batch.terminated, batch.truncated]
        arrays.append(pool.reset({1: Episode(9, (4, 4))}).frames)
        arrays.append(pool.step({2: 0, 1: 3}).observations.frames)
    return arrays


def test_results_do_not_depend_on_the_number_of_workers():
    for one, three in zip(play(1), play(3), strict=True):
        assert np.array_equal(one, three)


def test_answers_come_in_the_order_asked_for():
    with EnvPool(CONFIG, 2, 2) as pool:
        ahead = pool.reset({0: Episode(0, ()), 1: Episode(1, (4,))})
        back = pool.reset({1: Episode(1, (4,)), 0: Episode(0, ())})
        assert ahead.facts[:, 2].tolist() == [0, 1]
        assert np.array_equal(ahead.frames[::-1], back.frames)
        assert pool.step({1: 0, 0: 3}).observations.facts[:, 1].tolist() == [0, 3]


def test_a_failing_worker_shows_its_own_traceback():
    with EnvPool(CONFIG, 1) as pool:
        pool.reset({0: Episode(0, ())})
        with pytest.raises(UserError, match=r"worker 0 failed:\n(.|\n)*_say(.|\n)*out of range"):
            pool.step({0: 8})


def test_a_killed_worker_is_named():
    with EnvPool(CONFIG, 2, 2) as pool:
        pool.reset({0: Episode(0, ()), 1: Episode(1, ())})
        pool._processes[1].kill()
        with pytest.raises(UserError, match="worker 1 died with exit code -9"):
            pool.step({0: 0, 1: 0})


def test_closing_ends_the_workers_and_can_be_repeated():
    pool = EnvPool(CONFIG, 2, 2)
    pool.close()
    pool.close()
    assert not any(process.is_alive() for process in pool._processes)
