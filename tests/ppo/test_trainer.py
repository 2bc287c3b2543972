"""The loop itself, on worlds that need no robot."""

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.short_runs import collector_for, fresh_policy, metrics_of, trainer_for, without_times
from tests.worlds import ColourPool
from vlm_agent import Callback, PPOTrainer, VLMPolicy
from vlm_agent.common.errors import UserError
from vlm_agent.common.whole import write_manifest
from vlm_agent.report.examples import save_examples
from vlm_agent.runs.compatibility import check_same_run
from vlm_agent.runs.folders import RunFolders
from vlm_agent.world.episode import load_episode

LEARNING = {
    "num_envs": 8,
    "rollout_steps": 8,
    "batch_size": 32,
    "n_epochs": 4,
    "learning_rate": 2e-3,
    "entropy_coef": 0.0,
    "gamma": 0.5,
}


class ContraryPool(ColourPool):
    """The right word costs 1."""

    def _reward(self, slot: int, action: int) -> float:
        return -super()._reward(slot, action)


def share_of_right_words(trainer: PPOTrainer) -> float:
    """Share of sampled words in fresh episodes that are right; chance is 1/8."""
    collector = collector_for(ColourPool(32), seed=123, rank=9)
    return float(collector.collect_rollout(trainer.policy.eval(), 8)[0].rewards.mean())


@pytest.mark.parametrize("world", [ColourPool, ContraryPool])
def test_ppo_learns_which_word_belongs_to_which_colour(recipe_for, world):
    words = 768 if world is ColourPool else 256  # to avoid is quicker than to find
    trainer = trainer_for(recipe_for(**LEARNING, total_timesteps=words), pool=world(8))
    assert share_of_right_words(trainer) < 0.3
    trainer.train()
    if world is ColourPool:
        assert share_of_right_words(trainer) > 0.5
    else:
        assert share_of_right_words(trainer) < 0.05


class Memory(Callback):
    """Looks, while a rollout is collected, how many earlier ones are still in memory."""

    def __init__(self) -> None:
        self.made: list[weakref.ref] = []
        self.alive: list[int] = []

    def on_step(self, trainer):
        if (
            trainer.collector.words_said % 8 == 1
        ):  # the first step of a rollout, whose buffer is made
            gc.collect()
            self.alive.append(sum(rollout() is not None for rollout in self.made))

    def on_rollout_end(self, trainer, rollout, episodes):
        self.made.append(weakref.ref(rollout))


def test_one_rollout_is_in_memory_at_a_time(recipe_for):
    """Its frames and image features are the largest thing in host memory."""
    memory = Memory()
    trainer_for(recipe_for(use_peft=True), None, memory).train()
    assert len(memory.made) == 3
    assert memory.alive == [0, 0, 0]


def test_ddp_is_told_of_layers_that_are_never_used(recipe_for):
    for settings in ({}, {"use_peft": True}):
        recipe = recipe_for(**settings)
        assert trainer_for(recipe).accelerator.ddp_handler is None
        policy = fresh_policy(recipe)
        policy.family = dataclasses.replace(policy.family, skips_layers=True)
        handler = trainer_for(recipe, policy).accelerator.ddp_handler
        assert (handler is not None) == (not policy.vision_is_frozen)
        assert handler is None or handler.find_unused_parameters


def test_same_recipe_and_seed_give_the_same_metrics(recipe_for, tmp_path):
    runs = []
    for name in ("one", "two"):
        recipe = recipe_for(output_dir=str(tmp_path / name))
        trainer_for(recipe).train()
        runs.append(without_times(metrics_of(recipe)))
    assert runs[0] == runs[1]
    other = recipe_for(output_dir=str(tmp_path / "three"), seed=1)
    trainer_for(other).train()
    assert without_times(metrics_of(other)) != runs[0]


def test_metrics_have_the_documented_keys_and_numbers(recipe_for):
    recipe = recipe_for()
    trainer_for(recipe).train()
    metrics = metrics_of(recipe)
    keys = (
        "timesteps episode_return episode_length success_rate reached_rate grasped_rate "
        "lifted_rate policy_loss value_loss entropy approx_kl clip_fraction explained_variance "
        "first_ratio_error grad_norm learning_rate words_per_s rollout_s update_s "
        "physics_share rendering_share model_share waiting_share"
    )
    for row in metrics:
        assert set(keys.split()) <= set(row)
        assert all(np.isfinite(row[key]) for key in keys.split())
        assert sum(row["words"].values()) == pytest.approx(1)
    assert [row["timesteps"] for row in metrics] == [32, 64, 96]


def test_the_last_rollout_is_as_short_as_it_must_be(recipe_for):
    recipe = recipe_for(total_timesteps=70)
    trainer_for(recipe).train()
    assert [row["timesteps"] for row in metrics_of(recipe)] == [32, 64, 72]  # 4 at a time


def test_linear_schedule_falls_to_zero_for_both_learning_rates(recipe_for):
    recipe = recipe_for(lr_schedule="linear", learning_rate=1e-3, value_learning_rate=2e-3)
    trainer = trainer_for(recipe)
    seen = []
    trainer.learner.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.append([g["lr"] for g in trainer.learner.optimizer.param_groups])
    )
    trainer.train()
    logged = [row["learning_rate"] for row in metrics_of(recipe)]
    assert logged == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert seen[0] == [1e-3, 2e-3]
    assert seen[-1] == pytest.approx([1e-3 / 3, 2e-3 / 3])


class Stop(Callback):
    """Ends the process, so to speak, when a rollout is there and not yet learnt from."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_rollout_end(self, trainer, rollout, episodes):
        if trainer.timesteps == self.at:
            raise KeyboardInterrupt


def resumed_trainer(recipe, *callbacks: Callback) -> PPOTrainer:
    folder = RunFolders(recipe).resume_folder(recipe)
    trainer = trainer_for(recipe, VLMPolicy.from_pretrained(folder), *callbacks)
    trainer.resume(folder)
    return trainer


@pytest.mark.parametrize(
    "form",
    [{}, {"use_peft": True}, {"prompt_template": "prompts/default.jinja"}],
    ids=["full", "lora", "a prompt that tells numbers"],
)
def test_resumed_run_goes_on_as_if_nothing_had_happened(recipe_for, tmp_path, form):
    settings = {
        "save_freq": 32,
        "num_eval_episodes": 2,
        "eval_freq": 64,
        **form,
    }
    straight = recipe_for(output_dir=str(tmp_path / "straight"), **settings)
    whole = trainer_for(straight)
    whole.train()

    settings["output_dir"] = str(tmp_path / "stopped")
    stopped = recipe_for(**settings)
    first = trainer_for(stopped)
    first.listen(Stop(at=96))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed_recipe = recipe_for(resume_from="latest", **settings)
    resumed = resumed_trainer(resumed_recipe)
    assert resumed.timesteps == 64
    resumed.train()
    assert without_times(metrics_of(resumed_recipe)) == without_times(metrics_of(straight))
    for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.evaluations == whole.evaluations


class SolvedPool(ColourPool):
    """In an evaluation, so many episodes are solved as a script says; training solves none.

    Args:
        num_envs: N.
        shares: For each evaluation, whether each of its episodes is solved.
    """

    def __init__(self, num_envs: int, shares: list[tuple[bool, ...]]) -> None:
        super().__init__(num_envs)
        self.shares = iter(shares)
        self.solved: tuple[bool, ...] = ()
        self.reward = 0.0

    def _reward(self, slot: int, action: int) -> float:
        return self.reward

    def reset(self, episodes):
        is_evaluation = any(episode.seed % 4 == 1 for episode in episodes.values())  # validation
        self.solved = next(self.shares) if is_evaluation else ()
        return super().reset(episodes)

    def finish_step(self):
        slots = list(self._begun[0][0])
        batch = super().finish_step()
        for slot, info in zip(slots, batch.infos, strict=True):
            info["is_success"] = slot < len(self.solved) and self.solved[slot]
        return batch


def so_good(*rates: float) -> list[tuple[bool, ...]]:
    """Evaluations of ten episodes with these success rates."""
    return [tuple(n < round(10 * rate) for n in range(10)) for rate in rates]


TEN = {"num_envs": 10, "rollout_steps": 4, "batch_size": 20, "num_eval_episodes": 10, "n_epochs": 1}


def test_what_an_abandoned_branch_left_is_not_taken_for_the_runs_own(recipe_for):
    """A run goes on at 40 timesteps though it had been at 120, and does worse from there on."""
    settings = {**TEN, "save_freq": 40, "eval_freq": 80, "total_timesteps": 120}
    recipe = recipe_for(**settings)
    trainer_for(recipe, pool=SolvedPool(10, so_good(0.8, 0.9, 0.8))).train()
    folders = RunFolders(recipe)

    def left() -> tuple[list[str], list[str], float]:
        best = json.loads((folders.best / "trainer_state.json").read_text())
        evaluations = sorted(path.stem for path in (folders.run / "evaluations").iterdir())
        steps = [path.name.removeprefix("vlm-agent_step") for path in folders.steps()]
        return steps, evaluations, best["success_rate"]

    assert left() == (["40", "80", "120"], ["0", "120", "80"], 0.9)
    (folders.run / "evaluations" / "of-my-own.json").touch()
    settings["total_timesteps"] = 200
    again = recipe_for(resume_from=str(folders.step(40)), **settings)
    pool = SolvedPool(10, so_good(0.5, 0.7, 0.6))
    resumed = trainer_for(again, VLMPolicy.from_pretrained(folders.step(40)), pool=pool)
    resumed.resume(folders.step(40))
    assert left() == (["40"], ["0", "of-my-own"], 0.9)  # the best until there is another
    resumed.train()
    every = ["40", "80", "120", "160", "200"]
    assert left() == (every, ["0", "160", "200", "80", "of-my-own"], 0.7)
    assert [e["success_rate"] for e in resumed.evaluations] == [0.8, 0.5, 0.7, 0.6]
    again = recipe_for(resume_from="latest", **(settings | {"total_timesteps": 201}))
    pool = SolvedPool(10, so_good(0.7))
    resumed = trainer_for(again, VLMPolicy.from_pretrained(folders.step(200)), pool=pool)
    resumed.resume(folders.step(200))
    resumed.train()  # as good as the best, and no better
    assert json.loads((folders.best / "trainer_state.json").read_text())["timesteps"] == 160


@pytest.mark.parametrize(("rate", "is_better"), [(0.7, False), (1.0, True)])
def test_a_lost_best_policy_gives_way_to_a_better_one_alone(recipe_for, rate, is_better):
    settings = {**TEN, "save_freq": 80, "eval_freq": 80}
    first = recipe_for(**settings, total_timesteps=80)
    trainer_for(first, pool=SolvedPool(10, so_good(0.8, 0.9))).train()
    folders = RunFolders(first)
    (folders.best / "trainer_state.json").unlink()
    again = recipe_for(**settings, total_timesteps=160, resume_from="latest")
    folder = folders.resume_folder(again)
    pool = SolvedPool(10, so_good(rate))
    resumed = trainer_for(again, VLMPolicy.from_pretrained(folder), pool=pool)
    resumed.resume(folder)
    resumed.train()
    assert (folders.best / "trainer_state.json").exists() == is_better


def test_only_so_many_checkpoints_are_kept_and_the_best(recipe_for):
    seen = []

    class Watches(Callback):
        def on_save(self, trainer, folder):
            seen.append([path.name.partition("_step")[2] for path in trainer.folders.steps()])

    recipe = recipe_for(**TEN, save_freq=40, eval_freq=40, total_timesteps=200, save_total_limit=2)
    pool = SolvedPool(10, so_good(0.9, 0.1, 0.1, 0.1, 0.1, 0.1))
    trainer_for(recipe, None, Watches(), pool=pool).train()
    # One more while the newest is not known to be whole.
    expected = [["40"], ["40", "80"], ["40", "80", "120"], ["80", "120", "160"]]
    assert seen == [*expected, ["120", "160", "200"]]
    assert [path.name for path in RunFolders(recipe).steps()] == [
        "vlm-agent_step160",
        "vlm-agent_step200",
    ]
    assert RunFolders(recipe).best.is_dir()


def test_best_is_kept_by_success_and_then_return(recipe_for):
    results = [(0.0, 5.0), (0.5, 1.0), (0.5, 0.5), (0.5, 2.0), (0.5, 2.0), (0.2, 9.0)]
    recipe = recipe_for(**TEN)
    pool = SolvedPool(10, so_good(*(rate for rate, _ in results)))
    trainer = trainer_for(recipe, pool=pool)
    kept = []
    for trainer.timesteps, (_, pool.reward) in enumerate(results, 1):
        trainer.evaluate()
        state = json.loads((RunFolders(recipe).best / "trainer_state.json").read_text())
        kept.append(state["timesteps"])
    assert kept == [1, 2, 2, 4, 4, 4]  # a tie keeps the earlier one


def test_the_films_show_one_episode_before_and_after(recipe_for):
    """One that was solved only after training, if there is any."""
    recipe = recipe_for(num_envs=3, num_eval_episodes=3, batch_size=6, rollout_steps=4)
    solved = [(False, True, False), (True, True, True), (False, True, True)]
    trainer = trainer_for(recipe, pool=SolvedPool(3, solved))
    for trainer.timesteps in (0, 4, 6):
        trainer.evaluate()
    folders = trainer.folders
    evaluations = [json.loads(folders.evaluation(n).read_text())["episodes"] for n in (0, 6)]
    written = save_examples(
        (folders.evaluation(0), folders.evaluation(6)),
        (folders.before, folders.after),
    )
    for path, episodes in zip(written, evaluations, strict=True):
        episode, _, words = load_episode(path)
        assert episode.seed == episodes[2]["seed"]
        assert [words[action] for action in episode.actions] == episodes[2]["words"]


def test_an_existing_run_is_neither_overwritten_nor_mixed_up(recipe_for):
    recipe = recipe_for(save_freq=32)
    trainer_for(recipe).train()
    before = metrics_of(recipe)
    with pytest.raises(UserError, match="there is a run 'vlm-agent' already.*--resume_from"):
        trainer_for(recipe)
    assert metrics_of(recipe) == before
    assert [p.name for p in RunFolders(recipe).steps()] == [
        "vlm-agent_step32",
        "vlm-agent_step64",
        "vlm-agent_step96",
    ]
    resumed = recipe_for(overwrite=True, resume_from="latest")
    RunFolders(resumed).prepare(resumed)
    assert len(RunFolders(resumed).steps()) == 3  # resuming wins over overwriting
    again = recipe_for(overwrite=True)
    RunFolders(again).prepare(again)
    assert RunFolders(again).steps() == []
    assert not Path(RunFolders(again).metrics).exists()


def test_resuming_another_world_or_policy_is_refused(recipe_for):
    recipe = recipe_for(save_freq=96)
    trainer = trainer_for(recipe)
    trainer.train()
    folder = RunFolders(recipe).steps()[-1]
    changed = {
        "value_head_width": 8,
        "horizon": 7,
        "gamma": 0.5,
        "num_envs": 5,
        "seed": 1,
        "prompt_template": "prompts/guided.jinja",
    }
    with pytest.raises(UserError) as caught:
        check_same_run(folder, trainer.policy, recipe_for(**changed))
    for key in changed:
        assert key in str(caught.value)
    check_same_run(folder, trainer.policy, recipe_for(learning_rate=1e-5, n_epochs=9))


def test_resuming_finds_the_runs_own_checkpoints_only(recipe_for, tmp_path):
    recipe = recipe_for(save_freq=96)
    trainer_for(recipe).train()
    folder = RunFolders(recipe).steps()[-1]

    def resume_folder(**settings):
        wanted = recipe_for(**settings)
        return RunFolders(wanted).resume_folder(wanted)

    assert resume_folder() is None
    assert resume_folder(resume_from="latest") == resume_folder(resume_from=str(folder)) == folder
    with pytest.raises(UserError, match="resume_from: '/nowhere' is no checkpoint of the run"):
        resume_folder(resume_from="/nowhere")
    with pytest.raises(UserError, match="resume_from: there is no checkpoint"):
        resume_folder(resume_from="latest", run_name="never-run")
    with pytest.raises(UserError, match="is no checkpoint of the run 'other'"):
        resume_folder(resume_from=str(folder), run_name="other")
    (folder / "optimizer.safetensors").unlink()  # as a warm start leaves it
    write_manifest(folder)
    with pytest.raises(UserError, match=rf"no checkpoint to go on from in '{folder}'"):
        resume_folder(resume_from="latest")


def test_a_run_does_not_delete_the_model_it_starts_from(recipe_for):
    recipe = recipe_for(save_freq=96)
    trainer_for(recipe).train()
    folder = RunFolders(recipe).steps()[-1]
    again = recipe_for(overwrite=True, model_name_or_path=str(folder))
    with pytest.raises(UserError, match="would delete its own model"):
        trainer_for(again)
    assert folder.is_dir()
