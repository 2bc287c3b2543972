"""The warm start, in a world where a colour says which word the expert would say."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.short_runs import fresh_policy, metrics_of, trainer_for
from tests.worlds import ColourPool, ExpertPool, known
from vlm_agent.common.errors import UserError
from vlm_agent.imitation import trainer as imitation
from vlm_agent.imitation.trainer import ImitationTrainer, warmup_and_decay
from vlm_agent.policy.decisions import act
from vlm_agent.ppo.run import _start_policy, run_imitation
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.collector import RolloutCollector
from vlm_agent.runs.folders import RunFolders, check_same_policy

SETTINGS = {
    "sft_epochs": 6,
    "sft_batch_size": 16,
    "sft_learning_rate": 2e-3,
    "dagger_rounds": 1,
    "dagger_words": 64,
    "dagger_epochs": 2,
    "num_envs": 8,
    "horizon": 4,
    "num_eval_episodes": 4,
    "value_learning_rate": 3e-3,
}


def imitation_for(recipe: Recipe) -> ImitationTrainer:
    RunFolders(recipe).prepare(recipe)
    pool = ExpertPool(recipe.rollout.num_envs)
    return ImitationTrainer(recipe, Accelerator(cpu=True), fresh_policy(recipe), pool)


@pytest.fixture
def trained(recipe_for, monkeypatch) -> ImitationTrainer:
    monkeypatch.setattr(imitation, "read_demonstrations", lambda recipe: known())
    trainer = imitation_for(recipe_for(**SETTINGS, rollout_groups=1))
    trainer.train()
    return trainer


def test_it_learns_the_experts_words_and_the_pupils_returns(trained: ImitationTrainer):
    moments = known(8)
    assert np.array_equal(act(trained.policy.eval(), moments.observations).actions, moments.actions)
    metrics = metrics_of(trained.recipe)
    stages = [row["stage"] for row in metrics]
    round_1 = "DAgger round 1"
    assert stages == ["demonstrations"] * 6 + [f"{round_1}: the pupil speaks"] + [round_1] * 2 + [
        "value head: the pupil speaks",
        "value head",
    ]
    assert metrics[0]["loss"] > 1.0 > metrics[5]["loss"]
    assert metrics[6]["agreement"] > 0.5
    assert len(trained.evaluator.history) == 2
    # A right word earns 1, in four words of an episode: more than the next word's alone.
    collector = RolloutCollector(ColourPool(8), seed=5, rank=0)
    values = collector.collect_rollout(trained.policy, 1)[0].values
    assert 1.5 < values.mean() < 4.5


def test_the_loss_is_the_cross_entropy_of_the_policys_scores(recipe_for):
    trainer = imitation_for(recipe_for(**SETTINGS))
    batch = known(4)
    log_probs = trainer.policy(**trainer.policy.encode(batch.observations)).logits.log_softmax(-1)
    expected = -sum(log_probs[i, word] for i, word in enumerate(batch.actions)) / 4
    before = {k: v.clone() for k, v in trainer.policy.value_head.state_dict().items()}
    stats = trainer._step(batch, 1e-3)
    assert stats["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    after = trainer.policy.value_head.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_warming_the_value_head_changes_nothing_else(recipe_for):
    trainer = imitation_for(recipe_for(**SETTINGS, rollout_groups=1))
    before = {k: v.clone() for k, v in trainer.policy.state_dict().items()}
    trainer.warm_value_head()
    changed = {k for k, v in trainer.policy.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith("value_head.") for name in changed)


def test_the_value_head_learns_from_episodes_that_have_ended(recipe_for, monkeypatch):
    """Of ten words in episodes of four, the last two have no return yet."""
    targets = []

    def fit(policy, accelerator, samples, returns_TN, **_) -> float:
        targets.append(returns_TN)
        return 0.0

    monkeypatch.setattr(imitation, "fit_value_head", fit)
    settings = SETTINGS | {"num_envs": 4, "dagger_words": 40, "gamma": 0.5}
    trainer = imitation_for(recipe_for(**settings))
    rollout = trainer._rollout("value head")
    monkeypatch.setattr(trainer, "_rollout", lambda *_, **__: rollout)
    trainer.warm_value_head()
    (returns_TN,) = targets
    weights = 0.5 ** np.arange(4)
    for n, t in np.ndindex(4, 8):
        end = 4 * (t // 4 + 1)
        expected = weights[: end - t] @ rollout.rewards[t:end, n]
        assert returns_TN[t, n] == pytest.approx(expected)
    assert np.isnan(returns_TN[8:]).all()


def test_the_value_head_sees_failures_end(recipe_for, monkeypatch):
    """However few words a round of DAgger has, two of the longest episodes fit in."""
    lengths = []
    monkeypatch.setattr(imitation, "fit_value_head", lambda *what, **_: lengths.append(what[3]))
    for words, expected in ((8, 8), (160, 20)):
        recipe = recipe_for(**SETTINGS | {"dagger_words": words}, overwrite=True)
        imitation_for(recipe).warm_value_head()
        assert lengths.pop().shape == (expected, 8)


def test_an_evaluation_in_between_does_not_disturb_the_pupils_episodes(recipe_for):
    trainer = imitation_for(recipe_for(**SETTINGS))
    for _ in range(2):
        labelled = trainer.collect("round")
        colours = labelled.observations.frames[:, 0, 0, 0] < 128
        assert np.array_equal(labelled.actions, np.array(ColourPool.RIGHT)[colours.astype(int)])
        trainer.evaluate()


def test_learning_rate_rises_then_falls_to_nothing():
    assert [warmup_and_decay(x) for x in (0.0, 0.025, 0.05, 0.525, 1.0)] == pytest.approx(
        [0.0, 0.5, 1.0, 0.5, 0.0]
    )


def test_ppo_starts_from_what_the_warm_start_leaves(trained: ImitationTrainer, recipe_for):
    final = str(RunFolders(trained.recipe).final)
    words = list("abcdefgh")
    prompted = _start_policy(
        recipe_for(init_from=final, prompt_template="prompts/default.jinja", action_words=words)
    )
    assert prompted.words == tuple(words)
    assert "one of: a, b, c" in prompted.encoder.prompt((0, 8, 0, 1))
    training = {"detach_value": True, "freeze_vision": True, "temperature": 0.5}
    recipe = recipe_for(init_from=final, run_name="ppo", **training)
    policy = _start_policy(recipe)
    mine, saved = policy.state_dict(), trained.policy.state_dict()
    assert all(torch.equal(mine[name], saved[name]) for name in saved)
    assert policy.config.detach_value
    assert policy.vision_is_frozen
    inputs = policy.encode(known(4).observations)
    with torch.no_grad():
        before, after = (p(**inputs).logits for p in (trained.policy.eval(), policy.eval()))
    assert torch.allclose(after, 2 * before)
    assert policy.recipe["init_from"] == final
    policy.train_as(recipe_for().model)
    assert not policy.vision_is_frozen  # what one training froze, the next may train
    policy.train_as(recipe.model)
    trainer = trainer_for(recipe, policy)
    trainer.train()
    assert metrics_of(recipe)[0]["first_ratio_error"] < 1e-5


def test_a_run_does_not_delete_what_it_starts_from(trained: ImitationTrainer, recipe_for):
    folders = RunFolders(trained.recipe)
    again = recipe_for(**SETTINGS, overwrite=True, init_from=str(folders.final))
    with pytest.raises(UserError, match="would delete its own model"):
        folders.prepare(again)
    assert folders.final.is_dir()


def test_missing_demonstrations_leave_the_earlier_run_alone(trained: ImitationTrainer, recipe_for):
    with pytest.raises(UserError, match="demonstrations: there are none"):
        run_imitation(recipe_for(**SETTINGS, overwrite=True))
    assert RunFolders(trained.recipe).final.is_dir()


def test_the_experts_words_are_not_masked(trained: ImitationTrainer, recipe_for):
    with pytest.raises(UserError, match="mask_senseless_words: a warm start learns all"):
        run_imitation(recipe_for(**SETTINGS, overwrite=True, mask_senseless_words=True))
    assert RunFolders(trained.recipe).final.is_dir()


def test_a_policy_of_another_kind_is_no_start(trained: ImitationTrainer, recipe_for):
    for settings, named in (
        ({"use_peft": True}, "use_peft"),
        ({"value_head_width": 8}, "value_head_width"),
    ):
        with pytest.raises(UserError, match=f"init_from: x is a policy that differs in.*{named}"):
            check_same_policy("init_from: x", trained.policy, recipe_for(**settings))
