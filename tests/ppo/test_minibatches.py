import numpy as np
import pytest

from vlm_agent.ppo.minibatches import Minibatches


def dealt(counts, batch_size=4, epoch=0, is_whole=False):
    return [
        Minibatches(0, rank, batch_size, counts, update=3, is_whole=is_whole)(epoch)
        for rank in range(len(counts))
    ]


@pytest.mark.parametrize("counts", [[10, 7], [9, 2, 0], [5, 5], [11]])
def test_ranks_take_as_many_steps_and_every_sample_counts_the_same(counts):
    ranks = dealt(counts)
    steps = -(-max(counts) // 4)
    assert [len(minibatches) for minibatches in ranks] == [steps] * len(counts)
    for number in range(steps):
        shares = []  # of each sample of this step, in the mean that is taken over the ranks
        for minibatches in ranks:
            one = minibatches[number]
            assert 1 <= len(one.index) <= 4
            if one.weight:
                shares += [one.weight / len(one.index) / len(counts)] * len(one.index)
        np.testing.assert_allclose(shares, 1 / len(shares))
    for count, minibatches in zip(counts, ranks, strict=True):
        seen = [i for one in minibatches if one.weight for i in one.index.tolist()]
        assert sorted(seen) == list(range(count))


def test_whole_rollouts_are_cut_at_the_batch_size():
    ranks = dealt([10, 10], is_whole=True)
    assert [[len(one.index) for one in minibatches] for minibatches in ranks] == [[4, 4, 2]] * 2
    assert {one.weight for minibatches in ranks for one in minibatches} == {1.0}


def test_the_mean_over_a_process_is_weighted_by_its_samples():
    weights = [Minibatches(0, rank, 4, [6, 2, 0], 0, False).weight for rank in range(3)]
    assert weights == pytest.approx([2.25, 0.75, 0.0])
