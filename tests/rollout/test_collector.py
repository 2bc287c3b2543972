import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from tests.short_runs import collector_for
from tests.worlds import ColourPool, ScriptedPool
from vlm_agent import evaluate
from vlm_agent.common.seeding import episode_seed
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.pool.pool import EnvPool


@pytest.fixture
def speaker(make_policy):
    """A policy whose value head says something."""
    policy = make_policy().eval()
    nn.init.normal_(policy.value_head.output.weight)
    return policy


def values_of(policy, observations) -> np.ndarray:
    with torch.no_grad():
        return policy(**policy.encode(observations)).values.numpy()


def collect(pool, policy, steps):
    collector = collector_for(pool)
    return collector, *collector.collect_rollout(policy, steps)


def test_next_values_are_those_of_the_true_next_observations(speaker):
    """Environment 0 goes on, 1 terminates at step 1, 2 runs out of time at step 1."""
    pool = ScriptedPool(["...", ".tl", "..."])
    collector, buffer, finished = collect(pool, speaker, 3)
    assert np.array_equal(buffer.terminated, [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert np.array_equal(buffer.truncated, [[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert np.array_equal(buffer.rewards, [[10, 11, 12], [20, 21, 22], [30, 31, 32]])
    close = {"atol": 1e-5}
    assert np.allclose(buffer.next_values[0], buffer.values[1], **close)
    assert np.allclose(buffer.next_values[1, 0], buffer.values[2, 0], **close)
    after = values_of(speaker, pool.reset(dict(enumerate(collector.running))))
    assert np.allclose(buffer.next_values[2], after, **close)
    # The one that ran out of time: the value of what it saw last, not of the fresh episode.
    cut_off = next(r for r in finished if r.seed == episode_seed("train", 0, "rollout", 0, 2, 0))
    last_seen = pool.reset({2: cut_off})
    expected = values_of(speaker, last_seen)[0]
    assert buffer.next_values[1, 2] == pytest.approx(expected, abs=1e-5)
    assert abs(buffer.next_values[1, 2] - buffer.values[2, 2]) > 1e-4


def test_finished_episodes_are_recorded_with_their_words(speaker):
    pool = ScriptedPool(["..", "t.", "..", ".l"])
    _, buffer, finished = collect(pool, speaker, 4)
    assert [len(r.actions) for r in finished] == [2, 4]
    assert list(finished[0].actions) == buffer.actions[:2, 0].tolist()
    assert finished[0].episode_return == 10.0 + 20.0
    assert finished[1].episode_return == 11.0 + 21.0 + 31.0 + 41.0


def test_a_lost_episode_is_left_out_and_the_next_one_begins(speaker):
    collector, buffer, finished = collect(ScriptedPool(["..", ".x", "t.", "xt"]), speaker, 4)
    assert np.array_equal(buffer.lost, [[0, 0], [0, 1], [0, 0], [1, 0]])
    assert np.array_equal(buffer.valid, ~buffer.lost)
    assert buffer.lost_episodes == 2
    seeds = [episode_seed("train", 0, "rollout", 0, env, n) for env, n in ((0, 0), (1, 1))]
    assert [episode.seed for episode in finished] == seeds
    assert [len(episode.actions) for episode in finished] == [3, 2]
    assert collector.episodes_begun == [3, 3]
    assert [episode.actions for episode in collector.running] == [(), ()]


def test_frames_are_stored_as_bytes(speaker):
    _, buffer, _ = collect(ColourPool(2), speaker, 3)
    assert buffer.observations.frames.dtype == np.uint8
    assert buffer.observations.frames.shape == (3, 2, 56, 56, 3)
    assert buffer.log_probs.shape == buffer.values.shape == buffer.actions.shape == (3, 2)


def test_every_environment_and_rank_has_its_own_episodes():
    seeds = set()
    for rank in range(3):
        collector = collector_for(ColourPool(4), rank=rank)
        collector.take_up()
        seeds |= {record.seed for record in collector.running}
    assert len(seeds) == 12


def test_splitting_a_rollout_changes_nothing(speaker):
    whole = collect(ColourPool(2, horizon=3), speaker, 6)[1]
    collector = collector_for(ColourPool(2, horizon=3))
    parts = [collector.collect_rollout(speaker, 2)[0] for _ in range(3)]
    assert np.array_equal(whole.actions, np.concatenate([p.actions for p in parts]))
    assert np.array_equal(whole.values, np.concatenate([p.values for p in parts]))


def test_state_survives_json_and_another_use_of_the_pool(speaker):
    straight, _, _ = collect(ColourPool(2), speaker, 5)
    expected = straight.collect_rollout(speaker, 5)[0]

    pool = ColourPool(2)
    collector, _, _ = collect(pool, speaker, 5)
    state = json.loads(json.dumps(collector.state_dict()))
    evaluate(speaker, pool, num_episodes=3)
    again = collector.collect_rollout(speaker, 5)[0]
    resumed = collector_for(ColourPool(2))
    resumed.load_state_dict(state)
    loaded = resumed.collect_rollout(speaker, 5)[0]
    for buffer in (again, loaded):
        assert np.array_equal(buffer.actions, expected.actions)
        assert np.array_equal(buffer.observations.frames, expected.observations.frames)


def test_a_replay_that_differs_is_an_error(speaker):
    pool = ColourPool(2)
    collector, _, _ = collect(pool, speaker, 2)
    pool.COLOURS = ((0, 0, 0), (1, 1, 1))
    with pytest.raises(RuntimeError, match="differs"):
        collector.take_up()


class GreyPool(ColourPool):
    """All pictures are the same, so that only the numbers drawn decide what is said."""

    COLOURS = ((9, 9, 9), (9, 9, 9))


def test_every_step_environment_and_rank_draws_its_own_numbers(speaker):
    said = []
    for rank in (0, 1):
        buffer, _ = collector_for(GreyPool(2, horizon=99), rank=rank).collect_rollout(speaker, 30)
        said += buffer.actions.T.tolist()
    assert all(len(set(words)) > 3 for words in said)
    assert len({tuple(words) for words in said}) == 4


def arrays(buffer) -> dict[str, np.ndarray]:
    named = {field.name: getattr(buffer, field.name) for field in dataclasses.fields(buffer)}
    observations = named.pop("observations")
    del named["features"]
    return named | {"frames": observations.frames, "facts": observations.facts}


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_groups_change_nothing_but_the_batch(speaker, groups: int):
    """Log-probabilities and values may round differently in a batch of another size."""
    script = ["...", ".tl", "...", "l.t", "tll"]
    whole = arrays(collect(ScriptedPool(script), speaker, 5)[1])
    collector = collector_for(ScriptedPool(script), groups=groups)
    grouped, finished = collector.collect_rollout(speaker, 5)
    for name, array in arrays(grouped).items():
        if array.dtype == np.float32:
            assert np.allclose(array, whole[name], atol=1e-5), name
        else:
            assert np.array_equal(array, whole[name]), name
    assert len({record.seed for record in finished}) == len(finished) == 7
    assert [record.actions for record in finished if len(record.actions) == 4]


def test_the_time_is_accounted_for(speaker):
    collector = collector_for(ColourPool(2))
    before = collector.seconds()
    collector.collect_rollout(speaker, 3)
    spent = collector.seconds()["model"] - before["model"]
    shares = collector.shares(2 * spent, since=before)
    assert shares["model_share"] == pytest.approx(0.5)
    assert set(shares) == {"physics_share", "rendering_share", "model_share", "waiting_share"}


@pytest.mark.long
def test_a_rollout_is_the_same_whichever_worker_is_killed(speaker):
    """Point by point, with a real robot: every array of the finished buffer."""
    config = EnvConfig(task="Lift", frame_size=56, horizon=5)
    with EnvPool(config, 3, 2) as pool:

        def rollout(victims: dict[int, int]) -> dict[str, np.ndarray]:
            collector = collector_for(pool, groups=2)
            steps = iter(range(9))

            def on_step() -> None:
                if (victim := victims.get(next(steps))) is not None:
                    os.kill(pool.worker_pids()[victim], signal.SIGKILL)

            return arrays(collector.collect_rollout(speaker, 9, on_step)[0])

        undisturbed = rollout({})
        assert undisturbed["truncated"].sum() == 3
        for name, array in rollout({3: 1, 6: 0}).items():
            assert np.array_equal(array, undisturbed[name]), name
        assert pool.restarts == [1, 1]


def test_a_rollout_that_was_interrupted_leaves_the_pool_to_others(policy):
    pool = ColourPool(4)
    collector = collector_for(pool, groups=2)

    def interrupt() -> None:
        if collector.words_said == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collector.collect_rollout(policy.eval(), 8, interrupt)
    assert len(evaluate(policy, pool, 3).episodes) == 3
    rollout, episodes = collector.collect_rollout(policy, 8)
    assert rollout.rewards.shape == (8, 4)
    assert all(episode.length == 4 for episode in episodes)
