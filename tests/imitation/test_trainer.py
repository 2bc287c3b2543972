"""The warm start, in a world where a colour says which word the expert would say."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.short_runs import collector_for, fresh_policy, metrics_of, trainer_for
from tests.worlds import ColourPool, ExpertPool, known, of
from vlm_agent import Callback, ImitationTrainer, Recipe
from vlm_agent.common.errors import Stopped, TrainingError, UserError
from vlm_agent.common.whole import write_manifest
from vlm_agent.demonstrations.reading import Moments
from vlm_agent.distributed.stopping import Stopping
from vlm_agent.imitation.run import FIXED, run_imitation
from vlm_agent.imitation.update import pass_over, warmup_and_decay
from vlm_agent.policy.decisions import act
from vlm_agent.runs.begin import resumed_policy, start_policy
from vlm_agent.runs.checkpoints import load_trainer_state
from vlm_agent.runs.compatibility import check_same_policy
from vlm_agent.runs.folders import RunFolders, settled

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
    pool = of(ExpertPool(recipe.rollout.num_envs), recipe)
    return ImitationTrainer(fresh_policy(recipe), pool, recipe)


@pytest.fixture
def trained(recipe_for) -> ImitationTrainer:
    trainer = imitation_for(recipe_for(**SETTINGS, rollout_groups=1))
    trainer.train(known())
    return trainer


def test_it_learns_the_experts_words_and_the_students_returns(trained: ImitationTrainer):
    moments = known(8)
    assert np.array_equal(act(trained.policy.eval(), moments.observations).actions, moments.actions)
    metrics = metrics_of(trained.recipe)
    stages = [row["stage"] for row in metrics]
    round_1 = "DAgger round 1"
    assert stages == ["demonstrations"] * 6 + [f"{round_1}: the student speaks"] + [round_1] * 2 + [
        "value head: the student speaks",
        "value head",
    ]
    assert metrics[0]["loss"] > 1.0 > metrics[5]["loss"]
    assert metrics[6]["agreement"] > 0.5
    assert len(trained.evaluations) == 2
    # A right word earns 1, in four words of an episode: more than the next word's alone.
    collector = collector_for(ColourPool(8), seed=5)
    values = collector.collect_rollout(trained.policy, 1)[0].values
    assert 1.5 < values.mean() < 4.5


def test_the_loss_is_the_cross_entropy_of_the_policys_scores(recipe_for):
    trainer = imitation_for(recipe_for(**SETTINGS))
    batch = known(4)
    log_probs = trainer.policy(**trainer.policy.encode(batch.observations)).logits.log_softmax(-1)
    expected = -sum(log_probs[i, word] for i, word in enumerate(batch.actions)) / 4
    before = {k: v.clone() for k, v in trainer.policy.value_head.state_dict().items()}
    trainer.fit(Moments(batch), epochs=1, peak=1e-3, stage="one step")
    (row,) = metrics_of(trainer.recipe)
    assert row["loss"] == pytest.approx(expected.item(), abs=1e-6)
    after = trainer.policy.value_head.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("size", [1, 5])
def test_micro_batches_change_nothing_but_the_memory(recipe_for, tmp_path, size):
    gradients: list[list[torch.Tensor]] = []
    for part in (None, size):
        trainer = imitation_for(recipe_for(**SETTINGS, micro_batch_size=part, overwrite=True))
        taken: list[torch.Tensor] = []
        trainer.learner.optimizer.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, taken=taken: taken.extend(
                p.grad.clone() for p in trainer.policy.actor_parameters()
            )
        )
        trainer.fit(Moments(known(16)), epochs=1, peak=1e-3, stage="one step")
        gradients.append(taken)
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine - theirs).abs().max() < 1e-6 * max(1.0, float(theirs.abs().max()))


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(recipe_for):
    trainer = imitation_for(recipe_for(**SETTINGS | {"sft_learning_rate": 1e30}))
    with pytest.raises(TrainingError, match="not finite .* demonstrations, epoch 0"):
        trainer.train(known())
    assert all(p.isfinite().all() for p in trainer.policy.parameters())


def test_warming_the_value_head_changes_nothing_else(recipe_for):
    trainer = imitation_for(recipe_for(**SETTINGS, rollout_groups=1))
    before = {k: v.clone() for k, v in trainer.policy.state_dict().items()}
    trainer.warm_value_head()
    changed = {k for k, v in trainer.policy.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith("value_head.") for name in changed)


@pytest.mark.parametrize(("words", "steps"), [(8, 8), (160, 20)])
def test_the_value_head_sees_failures_end(recipe_for, words, steps):
    """However few words a round of DAgger has, two of the longest episodes fit in."""
    trainer = imitation_for(recipe_for(**SETTINGS | {"dagger_words": words}, rollout_groups=1))
    trainer.warm_value_head()
    assert trainer.pool.requests == 1 + steps


def test_an_evaluation_in_between_does_not_disturb_the_students_episodes(recipe_for):
    trainer = imitation_for(recipe_for(**SETTINGS))
    for _ in range(2):
        labelled = trainer.collect("round")
        colours = labelled.observations.frames[:, 0, 0, 0] < 128
        assert np.array_equal(labelled.actions, np.array(ColourPool.RIGHT)[colours.astype(int)])
        trainer.evaluate()


class StopAfterTwoEpochs(Callback):
    def on_update_end(self, trainer, metrics):
        trainer.should_stop = metrics.get("epoch") == 2


def test_a_callback_ends_the_warm_start(recipe_for):
    recipe = recipe_for(**SETTINGS)
    pool = of(ExpertPool(recipe.rollout.num_envs), recipe)
    trainer = ImitationTrainer(fresh_policy(recipe), pool, recipe, [StopAfterTwoEpochs()])
    trainer.train(known())
    stages = [row["stage"] for row in metrics_of(recipe)]
    assert stages == ["demonstrations"] * 2 + ["value head: the student speaks", "value head"]
    assert trainer.folders.final.is_dir()


class KilledError(Exception):
    """What ends a run on its way."""


class KilledAfter(Callback):
    """Dies after so many checkpoints, in the middle of what comes next."""

    def __init__(self, saves: int) -> None:
        self.saves = saves

    def on_save(self, trainer, folder):
        self.saves -= 1

    def on_update_end(self, trainer, metrics):
        if self.saves == 0:
            raise KilledError


LORA = {"use_peft": True, "lora_target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("stages", "form"), [(1, {}), (2, LORA), pytest.param(3, {}, marks=pytest.mark.long)]
)
def test_a_killed_warm_start_goes_on_as_if_nothing_had_happened(recipe_for, stages, form):
    settings = SETTINGS | {"dagger_rounds": 2, "rollout_groups": 1, **form}
    straight = imitation_for(recipe_for(**settings, run_name="straight"))
    straight.train(known())
    recipe = recipe_for(**settings)
    pool = of(ExpertPool(recipe.rollout.num_envs), recipe)
    with pytest.raises(KilledError):
        trainer = ImitationTrainer(fresh_policy(recipe), pool, recipe, [KilledAfter(stages)])
        trainer.train(known())
    again = recipe_for(**settings, resume_from="latest")
    folder = RunFolders(again).resume_folder(again)
    pool = of(ExpertPool(again.rollout.num_envs), again)
    resumed = ImitationTrainer(resumed_policy(folder, again), pool, again)
    resumed.resume(folder)
    resumed.train(known())
    assert metrics_of(again) == metrics_of(straight.recipe)
    unnamed = [[row | {"policy": ""} for row in t.evaluations] for t in (resumed, straight)]
    assert unnamed[0] == unnamed[1]
    mine, theirs = (trainer.policy.state_dict() for trainer in (resumed, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


class AskedAt(Stopping):
    """Is asked to end when it is looked at for the n-th time."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    @property
    def reason(self) -> str | None:
        self.left -= 1
        if self.left == 0:
            self.ask("SIGTERM")
        return super().reason


def test_a_warm_start_that_is_asked_to_end_comes_to_the_same_end(recipe_for, tmp_path):
    straight = imitation_for(recipe_for(**SETTINGS, output_dir=str(tmp_path / "straight")))
    straight.train(known())
    asked = 0
    for number in (8, 22):
        settings = {**SETTINGS, "output_dir": str(tmp_path / str(number))}
        trainer = imitation_for(recipe_for(**settings))
        trainer.run.stopping = AskedAt(number)
        try:
            trainer.train(known())
            continue
        except Stopped as stopped:
            assert stopped.reason == "SIGTERM"
        asked += 1
        again = settled(recipe_for(**settings, resume_from="auto"))
        folder = RunFolders(again).resume_folder(again)
        pool = of(ExpertPool(again.rollout.num_envs), again)
        policy = resumed_policy(folder, again) if folder else fresh_policy(again)
        resumed = ImitationTrainer(policy, pool, again)
        if folder:
            resumed.resume(folder)
        resumed.train(known())
        assert metrics_of(again) == metrics_of(straight.recipe), number
        rates = [[row | {"policy": ""} for row in t.evaluations] for t in (resumed, straight)]
        assert rates[0] == rates[1], number
        mine, theirs = (trainer.policy.state_dict() for trainer in (resumed, straight))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), number
    assert asked == 2


def test_what_a_warm_start_cannot_go_on_from(recipe_for):
    recipe = recipe_for(**SETTINGS)
    trainer = imitation_for(recipe)
    trainer.train(known())
    first, second = trainer.folders.steps()
    again = recipe_for(**SETTINGS, resume_from="latest")
    state = json.loads((second / "trainer_state.json").read_text())
    (second / "trainer_state.json").write_text(json.dumps(state | {"processes": 3}))
    write_manifest(second)
    pool = of(ExpertPool(again.rollout.num_envs), again)
    resumed = ImitationTrainer(resumed_policy(second, again), pool, again)
    with pytest.raises(UserError, match="is of 3 processes, now there are 1"):
        resumed.resume(second)
    (second / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(second)
    shutil.rmtree(first)
    with pytest.raises(UserError, match="the checkpoint that the demonstrations left is needed"):
        resumed.resume(second)
    fewer = recipe_for(**SETTINGS | {"dagger_rounds": 0}, resume_from="latest")
    resumed = ImitationTrainer(resumed_policy(second, fewer), pool, fewer)
    with pytest.raises(UserError, match="dagger_rounds: 0 is less than the 1 rounds that"):
        resumed.resume(second)
    other = recipe_for(**SETTINGS | {"dagger_words": 128}, resume_from="latest")
    with pytest.raises(UserError, match="a run that differs in dagger_words"):
        resumed_policy(second, other, FIXED)
    ppo = trainer_for(again, resumed_policy(second, again))
    with pytest.raises(UserError, match="is of a warm start: go on with vlm_agent.sft"):
        ppo.resume(second)


class KilledInside(Callback):
    """Ends the run in the middle of a pass, some batches after a checkpoint."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_begin(self, trainer):
        step = trainer.imitate.step

        def counted(*arguments):
            if self.left == 0:
                raise KilledError
            self.left -= 1
            return step(*arguments)

        trainer.imitate.step = counted


@pytest.mark.parametrize(
    ("batches", "form"),
    [
        pytest.param(10, {}, marks=pytest.mark.long),
        pytest.param(23, {}, marks=pytest.mark.long),
        (27, LORA),
        pytest.param(39, {}, marks=pytest.mark.long),
    ],
)
def test_a_warm_start_that_was_killed_in_a_pass_goes_on_inside_it(recipe_for, batches, form):
    """Its stages have 24, 16 and 24 batches, and there is a checkpoint after each three."""
    settings = SETTINGS | {"dagger_rounds": 2, "rollout_groups": 1, "save_freq": 48, **form}
    straight = imitation_for(recipe_for(**settings, run_name="straight"))
    straight.train(known())
    recipe = recipe_for(**settings)
    pool = of(ExpertPool(recipe.rollout.num_envs), recipe)
    trainer = ImitationTrainer(fresh_policy(recipe), pool, recipe, [KilledInside(batches)])
    with pytest.raises(KilledError):
        trainer.train(known())
    on_the_way = [
        path for path in trainer.folders.steps() if load_trainer_state(path)["stage"] is None
    ]
    assert len(on_the_way) == 1  # a later one takes the place of those before
    again = recipe_for(**settings, resume_from="latest")
    folder = RunFolders(again).resume_folder(again)
    assert folder == on_the_way[0]
    pool = of(ExpertPool(again.rollout.num_envs), again)
    count = KilledInside(1000)
    resumed = ImitationTrainer(resumed_policy(folder, again), pool, again, [count])
    resumed.resume(folder)
    resumed.train(known())
    assert 1000 - count.left <= 24 + 16 + 24 - batches + 2  # what was learnt is not learnt again
    assert metrics_of(again) == metrics_of(straight.recipe)
    mine, theirs = (trainer.policy.state_dict() for trainer in (resumed, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    left = [load_trainer_state(path)["stage"] for path in resumed.folders.steps()]
    assert left == [0, 1, 2]


def test_a_pass_with_other_batches_is_not_gone_on_with(recipe_for):
    settings = SETTINGS | {"save_freq": 48}
    recipe = recipe_for(**settings)
    pool = of(ExpertPool(recipe.rollout.num_envs), recipe)
    trainer = ImitationTrainer(fresh_policy(recipe), pool, recipe, [KilledInside(10)])
    with pytest.raises(KilledError):
        trainer.train(known())
    again = recipe_for(**settings | {"sft_batch_size": 8}, resume_from="latest")
    folder = RunFolders(again).resume_folder(again)
    pool = of(ExpertPool(again.rollout.num_envs), again)
    resumed = ImitationTrainer(resumed_policy(folder, again), pool, again)
    resumed.resume(folder)
    with pytest.raises(UserError, match="had 4 batches of 16, and would have 8 of 8 now"):
        resumed.train(known())


class SavesAfterAPass(Callback):
    def on_update_end(self, trainer, metrics):
        if metrics.get("epoch") == 2:
            trainer.save()
            raise KilledError


def test_what_a_callback_saved_is_gone_on_from_and_kept(recipe_for):
    straight = imitation_for(recipe_for(**SETTINGS, run_name="straight"))
    straight.train(known())
    recipe = recipe_for(**SETTINGS)
    pool = of(ExpertPool(recipe.rollout.num_envs), recipe)
    trainer = ImitationTrainer(fresh_policy(recipe), pool, recipe, [SavesAfterAPass()])
    with pytest.raises(KilledError):
        trainer.train(known())
    again = recipe_for(**SETTINGS, resume_from="latest")
    folder = RunFolders(again).resume_folder(again)
    pool = of(ExpertPool(again.rollout.num_envs), again)
    resumed = ImitationTrainer(resumed_policy(folder, again), pool, again)
    resumed.resume(folder)
    resumed.train(known())
    assert folder.is_dir()
    mine, theirs = (trainer.policy.state_dict() for trainer in (resumed, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_warm_start_does_not_go_on_from_a_run_of_ppo(recipe_for):
    trainer = trainer_for(recipe_for(save_freq=32))
    trainer.train(32)
    again = recipe_for(**SETTINGS, resume_from="latest")
    pool = of(ExpertPool(again.rollout.num_envs), again)
    resumed = ImitationTrainer(fresh_policy(again), pool, again)
    with pytest.raises(UserError, match="is of a run of PPO: go on with vlm_agent.train"):
        resumed.resume(trainer.folders.steps()[0])


def test_a_recipe_of_grpo_can_have_a_warm_start(recipe_for):
    """Its value head learns: whoever trains the policy further may need it."""
    grouped = {"advantage": "group", "group_size": 4, "dagger_rounds": 0, "sft_epochs": 1}
    trainer = imitation_for(recipe_for(**SETTINGS | grouped))
    trainer.train(known())
    assert trainer.policy.value_head.output.weight.any()


def test_a_pass_goes_over_all_that_is_new_and_a_share_of_the_rest():
    passes = [pass_over(100, 20, 0.25, np.random.default_rng(n)) for n in range(2)]
    for order in passes:
        assert len(set(order)) == len(order) == 40
        assert set(range(80, 100)) <= set(order)
    assert set(passes[0]) != set(passes[1])
    assert sorted(pass_over(10, 3, 1.0, np.random.default_rng(0))) == list(range(10))
    assert sorted(pass_over(10, 3, 0.0, np.random.default_rng(0))) == [7, 8, 9]


def test_a_round_of_dagger_replays_a_share(recipe_for):
    recipe = recipe_for(**SETTINGS | {"dagger_replay": 0.5})
    imitation_for(recipe).train(known())
    epochs = [row["timesteps"] for row in metrics_of(recipe) if "epoch" in row]
    first, *_, last = np.diff(epochs)
    demonstrations, heard = len(known()), SETTINGS["dagger_words"]
    assert (first, last) == (demonstrations, demonstrations // 2 + heard)


def test_learning_rate_rises_then_falls_to_nothing():
    assert [warmup_and_decay(x) for x in (0.0, 0.025, 0.05, 0.525, 1.0)] == pytest.approx(
        [0.0, 0.5, 1.0, 0.5, 0.0]
    )


def test_ppo_starts_from_what_the_warm_start_leaves(trained: ImitationTrainer, recipe_for):
    final = str(RunFolders(trained.recipe).final)
    words = list("abcdefgh")
    prompted = start_policy(
        recipe_for(init_from=final, prompt_template="prompts/default.jinja", action_words=words)
    )
    assert prompted.words == tuple(words)
    assert "one of: a, b, c" in prompted.encoder.prompt((0, 8, 0, 1))
    training = {"detach_value": True, "freeze_vision": True, "temperature": 0.5}
    recipe = recipe_for(init_from=final, run_name="ppo", **training)
    policy = start_policy(recipe)
    mine, saved = policy.state_dict(), trained.policy.state_dict()
    assert all(torch.equal(mine[name], saved[name]) for name in saved)
    assert policy.config.detach_value
    assert policy.vision_is_frozen
    inputs = policy.encode(known(4).observations)
    with torch.no_grad():
        before, after = (p(**inputs).logits for p in (trained.policy.eval(), policy.eval()))
    assert torch.allclose(after, 2 * before)
    policy.train_as(recipe_for().model)
    assert not policy.vision_is_frozen  # what one training froze, the next may train
    policy.train_as(recipe.model)
    trainer = trainer_for(recipe, policy)
    assert policy.recipe["init_from"] == final
    trainer.train()
    assert metrics_of(recipe)[0]["first_ratio_error"] < 1e-5


def test_a_run_does_not_delete_what_it_starts_from(trained: ImitationTrainer, recipe_for):
    folders = RunFolders(trained.recipe)
    again = recipe_for(**SETTINGS, overwrite=True, init_from=str(folders.final))
    with pytest.raises(UserError, match="would delete its own model"):
        imitation_for(again)
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
        with pytest.raises(UserError, match=f"init_from: x differs from the recipe in.*{named}"):
            check_same_policy("init_from: x", trained.policy, recipe_for(**settings))


def test_its_verbs_work_without_train_and_keep_what_was_saved(recipe_for):
    trainer = imitation_for(recipe_for(**SETTINGS))
    saved = trainer.save()
    labelled = trainer.collect("a look")
    trainer.fit(Moments(labelled), 1, 1e-3, "a lesson")
    trainer.warm_value_head()
    assert saved.is_dir()
    stages = [row["stage"] for row in metrics_of(trainer.recipe)]
    assert (stages[0], stages[-1]) == ("a look: the student speaks", "value head")


def test_a_trainer_refuses_what_only_ppo_does_and_environments_without_an_expert(recipe_for):
    masked = recipe_for(**SETTINGS, mask_senseless_words=True)
    with pytest.raises(UserError, match="mask_senseless_words: a warm start learns all"):
        imitation_for(masked)
    recipe = recipe_for(**SETTINGS)
    trainer = ImitationTrainer(fresh_policy(recipe), of(ColourPool(8), recipe), recipe)
    with pytest.raises(UserError, match=r"recipe.make_pool\(ExpertEnv\)"):
        trainer.collect("nobody knows")
