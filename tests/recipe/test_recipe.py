import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic.dataclasses import dataclass

from tests.conftest import ROOT
from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import STRICT, Count, setting
from vlm_agent.common.strict_yaml import read_yaml
from vlm_agent.policy.config import ModelConfig
from vlm_agent.recipe.command_line import load_recipe, override_env
from vlm_agent.recipe.keys import SECTIONS, register_section
from vlm_agent.recipe.recipe import Recipe, make_recipe
from vlm_agent.recipe.sections import PPOConfig, RolloutConfig, RunConfig
from vlm_agent.world.config import EnvConfig

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

BAD_RECIPES = [
    ("learning_rat: 1.0e-4", "learning_rat: unknown key.*'learning_rate'"),
    ("learning_rate: fast", "learning_rate: 'fast'"),
    ("learning_rate: -1.0e-4", "learning_rate: -0.0001.*greater than 0"),
    ("seed: 010", "010: a number does not begin with 0: write 10, or quotes"),
    ("seed: -007", "-007: .*write -7"),
    ("seed: 0x10", "0x10: write a decimal number"),
    ("seed: 1_000", "1_000: write 1000"),
    ("rank_timeout: 1:30", "1:30: write seconds as one number"),
    ("overwrite: yes", "yes: write true or false"),
    ("action_words: [on, off]", "on: write true or false, or quotes around a text"),
    ("seed: 1000000000000000000000000000000", "seed: 1000000000000000000000000000000: .*less than"),
    ("seed: " + "9" * 5001, "999999999...: a number of 5001 digits"),
    ("num_envs: 1000000", "num_envs: 1000000: .*less than or equal to 4096"),
    ("worker_timeout: 1.0e+300", r"worker_timeout: 1e\+300: .*less than or equal to"),
    ("max_hours: 0", "max_hours: 0.*greater than 0"),
    ("value_head_width: 1000000000", "value_head_width: 1000000000: .*less than or equal to 65536"),
    ("run_name: " + "a" * 101, "run_name: 'a+': "),
    ("words: " + "[" * 30 + "]" * 30, "values lie in each other more than 20 deep"),
    (
        "reward: &a [x, x]\ntask: &b [*a, *a]\nrobot: [*b, *b]",
        r"\*a: an alias within an anchor's value",
    ),
    ("async_rollout: 2", "async_rollout: 2: .*less than or equal to 1"),
    ("learning_rate: .nan", "learning_rate: nan.*finite"),
    ("learning_rate: .inf", "learning_rate: inf.*finite"),
    ("total_timesteps: 0", "total_timesteps: 0.*greater than or equal to 1"),
    ("total_timesteps: 1000.5", "total_timesteps: 1000.5.*integer"),
    ("rollout_steps: '128'", "rollout_steps: '128'.*integer"),
    ("num_envs: true", "num_envs: True.*integer"),
    ("num_envs: null", "num_envs: None.*integer"),
    ("num_envs: [4]", r"num_envs: \[4\].*integer"),
    ("gamma: 1.01", "gamma: 1.01.*less than or equal to 1"),
    ("gae_lambda: -0.1", "gae_lambda: -0.1"),
    ("clip_range: 0", "clip_range: 0.*greater than 0"),
    ("normalize_advantage: 'yes'", "normalize_advantage: 'yes'.*boolean"),
    ("detach_value: 1", "detach_value: 1.*boolean"),
    ("lr_schedule: cosine", "lr_schedule: 'cosine'.*'constant' or 'linear'"),
    ("reward: dense", "reward: 'dense': it should be progress, staged"),
    ("camera: slow", "camera: 'slow'"),
    ("report_to: mlfow", "report_to: .*wandb"),
    ("report_to: [none, wandb]", "report_to: 'none' cannot stand"),
    ("dtype: int8", "dtype: 'int8'.*'bfloat16'"),
    ("task: PickPlaceCann", "task: unknown.*'PickPlaceCann'.*'PickPlaceCan'"),
    ("task: TwoArmLift", "task: 'TwoArmLift' is a robosuite task for two arms"),
    ("robot: Pandu", "robot: unknown.*'Pandu'.*'Panda'"),
    ("robot: Baxter", "robot: 'Baxter' has two arms or a base that moves"),
    ("run_name: a/b", "run_name: 'a/b'"),
    ("frame_size: 12", "frame_size: 12"),
    ("controller_hz: 300", "controller_hz: 300: it should divide the 500 Hz"),
    ("lora_dropout: 0.05", "lora_dropout: 0.05 is not 0"),
    ("load_in_4bit: true", "load_in_4bit: quantised weights cannot be trained: add use_peft"),
    ("load_in_8bit: true", "load_in_8bit: quantised weights cannot be trained: add use_peft"),
    (
        "load_in_8bit: true\nload_in_4bit: true\nuse_peft: true",
        "load_in_8bit: is true beside load_in_4bit",
    ),
    ("use_peft: true\nlora_target_modules: []", "lora_target_modules: the list is empty"),
    ("lora_vision_modules: [qkv]", "lora_vision_modules: names layers to adapt, but use_peft"),
    (
        "use_peft: true\nlora_vision_modules: [qkv]\nfreeze_vision: true",
        "freeze_vision: is true, but lora_vision_modules",
    ),
    ("kl_coef: 0.1\nscoring: action_head", "kl_coef: is not 0, but scoring: action_head"),
    ("scoring: phrases", "scoring: 'phrases': it should be 'auto', 'first_token'"),
    ("temperature: 0", "temperature: 0: it should be greater than or equal to 0.001"),
    ("temperature: 1.0e-40", "temperature: 1e-40"),
    ("detach_value: 1", "detach_value: 1: it should be a valid boolean"),
    ("dtype: bfloat16", "dtype: 'bfloat16' weights are too coarse.*use_peft"),
    ("advantage: grpo", "advantage: 'grpo'.*'gae' or 'group'"),
    ("group_size: 1", "group_size: 1.*greater than or equal to 2"),
    ("advantage: group", r"num_envs: 4 is no multiple of group_size \(8\)"),
    ("advantage: group\ncritic_warmup_updates: 1", "critic_warmup_updates: 1 is about a critic"),
    ("advantage: group\nvalue_epochs: 2", "value_epochs: 2 is about a critic.*advantage: gae"),
    ("advantage: group\nvalue_input: state", "value_input: 'state' is about a critic"),
    ("batch_size: 2000", r"batch_size: 2000 is more than .*\(512\)"),
    ("num_workers: 9", r"num_workers: 9 is more than num_envs \(4\)"),
    ("model_name_or_path: ./no-such-folder", "model_name_or_path: there is no folder"),
    ("action_words: [up, down]", "action_words: expected 8 words"),
    ("action_words: [a, b, c, d, e, f, g, a]", "action_words: 'a' stands there twice"),
    ("task_description: 'Go <|im_end|>'", "prompt_template: task contains the special token"),
    ("prompt_template: prompts/none.jinja", "prompt_template: unknown template file"),
    ("seed: 1\nseed: 2", "seed: the key is given twice"),
    ("- seed", "expected lines of 'key: value'"),
    ("seed: [1", "not valid YAML"),
]


@pytest.mark.parametrize("key", ["--config", "--prompt_template"])
def test_files_that_hold_no_text_are_refused_by_name(key: str, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"seed: 1 # \xff")
    with pytest.raises(UserError, match=f"{path}: not a text file in UTF-8"):
        load_recipe([key, str(path)])


@pytest.mark.parametrize(("text", "problem"), BAD_RECIPES, ids=[t for t, _ in BAD_RECIPES])
def test_bad_recipes_are_refused_with_their_key(text: str, problem: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=problem):
        load_recipe(["--config", str(path)])


def test_all_problems_are_reported_at_once(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("gamma: 2\nbogus: 1\ntask: Lfit\n")
    argv = ["--config", str(path), "--batch_size", "x", "--lora_dropout", "0.1", "--oops", "1"]
    with pytest.raises(UserError) as caught:
        load_recipe(argv)
    message = str(caught.value)
    assert message.startswith("6 problems")
    for key in ("gamma", "bogus", "task", "batch_size", "lora_dropout", "--oops"):
        assert f"\n  {key}: " in message


def test_command_line_exits_with_2_before_any_model_loads():
    listing_imports = [sys.executable, "-X", "importtime", "-m", "vlm_agent.train"]
    command = [*listing_imports, "--gamma", "2", "--task", "Lfit"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", result.stderr, re.MULTILINE))
    assert "robosuite" in imported, "it knows the tasks' names"
    assert not imported & {"torch", "transformers"}
    assert "gamma: 2" in result.stderr
    assert "did you mean 'Lift'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("path", RECIPES, ids=[p.stem for p in RECIPES])
def test_shipped_recipes_are_valid_and_say_how_to_run_them(path: Path):
    recipe = load_recipe(["--config", str(path)])
    header = path.read_text().split("run_name")[0]
    for part in ("# Purpose:", "# Hardware:", "# Command:", f"--config recipes/{path.name}"):
        assert part in header
    assert recipe.run.run_name == path.stem


def test_flags_override_the_recipe():
    path = str(ROOT / "recipes" / "quick.yaml")
    flags = "--learning_rate 5e-4 --use_peft --target_kl none --report_to wandb tensorboard"
    recipe = load_recipe(["--config", path, *flags.split(), "--eval_greedy", "false"])
    assert recipe.ppo.learning_rate == 5e-4
    assert recipe.model.use_peft is True
    assert recipe.ppo.target_kl is None
    assert recipe.tracking.report_to == ["wandb", "tensorboard"]
    assert recipe.evaluation.eval_greedy is False
    assert recipe.run.total_timesteps == read_yaml(Path(path))["total_timesteps"]


@pytest.mark.parametrize("text", ["[1", "x: y: z", "{a: 1, a: 2}"])
def test_flags_that_are_no_yaml_are_reported_with_the_others(text: str):
    with pytest.raises(UserError, match="2 problems(.|\n)*seed: (.|\n)*gamma: 2"):
        load_recipe(["--seed", text, "--gamma", "2"])


def test_defaults_are_the_documented_ones():
    ppo = PPOConfig()
    assert (RunConfig().total_timesteps, RolloutConfig().rollout_steps) == (100_000, 128)
    assert ppo.learning_rate == 3e-5
    assert (ppo.clip_range, ppo.gamma, ppo.gae_lambda, ppo.n_epochs) == (0.2, 0.99, 0.95, 4)
    assert (ppo.batch_size, ppo.value_coef, ppo.entropy_coef) == (4, 0.5, 0.01)


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-4\ngamma: 1\nclip_range: 2E-1")
    values = read_yaml(path)
    assert values == {"learning_rate": 1e-4, "gamma": 1, "clip_range": 0.2}


def test_resolved_recipe_reads_back_as_the_same_run():
    recipe = load_recipe(["--config", str(ROOT / "recipes" / "full.yaml")])
    again = make_recipe(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe


def test_a_recipe_that_ships_is_had_by_its_name_with_settings_of_ones_own():
    recipe = Recipe.load("quick", total_timesteps=512, task="Lift")
    path = str(ROOT / "recipes" / "quick.yaml")
    assert recipe == load_recipe(["--config", path, "--total_timesteps", "512", "--task", "Lift"])
    assert (recipe.run.total_timesteps, recipe.env.task) == (512, "Lift")
    with pytest.raises(UserError, match="config: unknown recipe 'quik'; did you mean 'quick'"):
        Recipe.load("quik")
    with pytest.raises(UserError, match="total_timestep: unknown key .*'total_timesteps'"):
        Recipe.load("quick", total_timestep=512)


def test_a_section_made_in_python_refuses_what_it_does_not_have():
    for section, mistake in ((ModelConfig, "temprature"), (PPOConfig, "gama"), (RunConfig, "name")):
        with pytest.raises(ValueError, match=mistake):
            section(**{mistake: 9})


def test_a_scene_is_changed_by_the_words_of_a_command():
    scene = EnvConfig(task="Lift")
    changed = override_env(scene, ["--horizon", "30", "--object_colour", "blue"])
    assert changed == EnvConfig(task="Lift", horizon=30, object_colour="blue")
    with pytest.raises(UserError, match="--horizn: unknown option .*did you mean '--horizon'"):
        override_env(scene, ["--horizn", "30"])


@dataclass(config=STRICT, frozen=True)
class PushConfig:
    """What a package of its own adds."""

    push_words: Count = setting(3, "how many words a push takes")
    push_hard: bool = setting(False, "push harder")


@pytest.fixture
def push_section() -> Iterator[None]:
    register_section("push", PushConfig)
    yield
    del SECTIONS["push"]


def test_a_key_is_added_from_outside(push_section: None, tmp_path: Path, capsys):
    assert Recipe.load().extra == {"push": PushConfig()}
    recipe = Recipe.load("quick", push_words=5)
    assert recipe.extra["push"] == PushConfig(push_words=5)
    assert recipe.to_dict()["push_words"] == 5
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    typed = load_recipe(["--config", str(path), "--push_words", "7", "--push_hard"])
    assert typed.extra["push"] == PushConfig(push_words=7, push_hard=True)
    with pytest.raises(UserError, match="2 problems(.|\n)*'--push_words'(.|\n)*push_hard: 'x'"):
        load_recipe(["--push_word", "7", "--push_hard", "x"])
    with pytest.raises(UserError, match="push_words: 0: it should be greater than or equal to 1"):
        Recipe.load(push_words=0)
    with pytest.raises(SystemExit):
        load_recipe(["--help"])
    assert "how many words a push takes" in " ".join(capsys.readouterr().out.split())


def test_a_key_that_is_taken_is_not_added(push_section: None):
    for name, section in (("push", RunConfig), ("another", PushConfig)):
        with pytest.raises(UserError, match=f"the section '{name}': there is .* already"):
            register_section(name, section)
