import math

import numpy as np
import pytest
import torch

from vlm_agent.ppo.losses import clipped_policy_loss, kl_estimates, value_loss


def test_policy_loss_by_hand():
    """Ratios 1.5, 0.5, 1.5, 0.5 and 1.1; advantages of both signs; epsilon 0.2."""
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0], dtype=torch.float64)
    new = ratios.log().requires_grad_()
    result = clipped_policy_loss(new, torch.zeros(5, dtype=torch.float64), advantages, 0.2)
    # min(1.5, 1.2), min(0.5, 0.8), min(-1.5, -1.2), min(-0.5, -0.8), min(2.2, 2.2)
    objective = [1.2, 0.5, -1.5, -0.8, 2.2]
    assert result.loss.item() == pytest.approx(-sum(objective) / 5, abs=1e-12)
    assert result.clip_fraction.item() == pytest.approx(0.8)
    assert result.max_ratio_error.item() == pytest.approx(0.5)
    kl = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.5, 0.5, 1.1)) / 5
    assert result.approx_kl.item() == pytest.approx(kl, abs=1e-12)
    result.loss.backward()
    # d(r A)/d(log pi) = r A where the plain term is the smaller one, else nothing
    by_hand = [-g / 5 for g in (0.0, 0.5, -1.5, 0.0, 2.2)]
    assert torch.allclose(new.grad, torch.tensor(by_hand, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_policy_gradient_against_finite_differences(dtype):
    rng = np.random.default_rng(0)
    old = torch.from_numpy(rng.normal(size=40)).to(dtype)
    new = (old + torch.from_numpy(rng.normal(size=40) * 0.3).to(dtype)).requires_grad_()
    advantages = torch.from_numpy(rng.normal(size=40)).to(dtype)
    clipped_policy_loss(new, old, advantages, 0.2).loss.backward()

    def loss(log_probs: np.ndarray) -> float:
        ratio = np.exp(log_probs - old.double().numpy())
        a = advantages.double().numpy()
        return -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean()

    base = new.detach().double().numpy()
    for i in range(40):
        step = np.zeros(40)
        step[i] = 1e-6
        slope = (loss(base + step) - loss(base - step)) / 2e-6
        assert new.grad[i].item() == pytest.approx(slope, abs=1e-6)


def test_first_order_gradient_is_the_policy_gradient():
    """At ratio 1 the clipped loss has the gradient of -A log pi, and no clipping happens."""
    advantages = torch.tensor([1.0, -2.0, 0.5])
    new = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    result = clipped_policy_loss(new, new.detach(), advantages, 0.2)
    result.loss.backward()
    assert torch.allclose(new.grad, -advantages / 3)
    assert result.clip_fraction == result.approx_kl == result.max_ratio_error == 0


def test_plain_value_loss_by_hand():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    loss = value_loss(values, torch.zeros(2).double(), torch.tensor([3.0, 1.0]).double(), None)
    assert loss.item() == pytest.approx(0.5 * (4 + 1) / 2)
    loss.backward()
    assert values.grad.tolist() == [-1.0, 0.5]


def test_clipped_value_loss_by_hand():
    """Range 0.5 around old values 0. The larger error counts, and with it its gradient."""
    values = torch.tensor([1.0, 1.0, 0.2, -1.0], dtype=torch.float64, requires_grad=True)
    old = torch.zeros(4, dtype=torch.float64)
    returns = torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    loss = value_loss(values, old, returns, 0.5)
    # plain errors 1, 1, 0.64, 4; clipped at 0.5, 0.5, 0.2, -0.5: 2.25, 0.25, 0.64, 2.25
    assert loss.item() == pytest.approx(0.5 * (2.25 + 1 + 0.64 + 4) / 4, abs=1e-12)
    loss.backward()
    # the first is clipped and larger: no gradient; the others: (v - R) / 4
    assert torch.allclose(values.grad, torch.tensor([0.0, 0.25, -0.2, -0.5]).double(), atol=1e-12)


def test_kl_estimates_by_hand_and_on_average():
    """For each word by hand; weighted with the policy's probabilities both give the true KL."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    true = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    k1 = kl_estimates(p.log(), q.log(), "k1")
    k3 = kl_estimates(p.log(), q.log(), "k3")
    assert k1.tolist() == pytest.approx([math.log(2), math.log(1.2), math.log(0.4)])
    assert k3.tolist() == pytest.approx(
        [0.5 - 1 + math.log(2), 5 / 6 - 1 + math.log(1.2), 2.5 - 1 - math.log(2.5)]
    )
    assert (p * k1).sum().item() == pytest.approx(true)
    assert (p * k3).sum().item() == pytest.approx(true)
    assert (k3 >= 0).all()
    assert (k1 < 0).any()


def test_the_approximate_kl_of_float32_is_never_negative():
    """Not of a single word, however small its step; as r − 1 − log r it was, by rounding."""
    steps = torch.logspace(-9, 0, 2000)
    for log_ratio in (steps, -steps):
        for chunk in log_ratio.split(1):
            kl = clipped_policy_loss(chunk, torch.zeros(1), torch.ones(1), 0.2).approx_kl
            assert kl >= 0


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_scores_have_finite_losses_and_gradients(rows: int, dtype: torch.dtype):
    """Scores of +-1e4, a ratio of 1, and ones that no number can hold, against float64."""
    scores = torch.tensor([[1e4, -1e4, 0.0]] * rows)[:, torch.randperm(3)].to(dtype)
    scores = scores.float().requires_grad_()
    action = torch.zeros(rows, dtype=torch.long)
    said = scores.log_softmax(-1).gather(-1, action[:, None])[:, 0]
    advantages = torch.tensor([1.0, -1.0, 0.0, 1e4, 3.0, -2.0])[:rows]
    # Of the last two one was unlikely, and one likely, before.
    moved = torch.tensor([0.0, 0.0, 0.0, 0.0, 2e4, -2e4])[:rows]
    old = said.detach() - moved
    result = clipped_policy_loss(said, old, advantages, 0.2)
    result.loss.backward()
    assert scores.grad.isfinite().all()
    assert all(torch.isfinite(value) for value in result)
    a = advantages.double().numpy()
    with np.errstate(over="ignore"):
        ratio = np.exp(moved.double().numpy())
    clipped = np.clip(ratio, 0.8, 1.2)
    expected = np.minimum(np.where(a == 0, 0, ratio * a), clipped * a)
    assert result.loss.item() == pytest.approx(-expected.mean(), rel=1e-5)
    far = torch.tensor([1e4, -1e4])
    assert value_loss(far, far, -far, None).item() == pytest.approx(0.5 * 4e8, rel=1e-5)
    worst = clipped_policy_loss(torch.tensor([0.0]), torch.tensor([-2e4]), -torch.ones(1), 0.2)
    assert torch.isfinite(worst.loss) and worst.loss > 1e20
