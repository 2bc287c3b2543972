"""A recipe is what a run is: flat YAML, typed, checked in one place before anything heavy starts.

``load_recipe`` reads ``--config FILE`` and the overrides behind it, in the manner of TRL. Every
problem is reported at once, each with its key.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.settings import STRICT, setting
from vlm_agent.common.strict_yaml import parse_yaml, read_yaml
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.prompts import PromptTemplate, load_template_source
from vlm_agent.world.actions import DEFAULT_WORDS, word_problems
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.robosuite.names import name_problems
from vlm_agent.world.robosuite.tasks import get_task

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(config=STRICT, frozen=True)
class PromptConfig:
    """What the model reads and which words it may say."""

    prompt_template: str = setting("prompts/default.jinja", "the Jinja file of the prompt")
    task_description: str | None = setting(
        None, "the task in a sentence; by default the task's own"
    )
    action_words: list[str] = setting(
        list(DEFAULT_WORDS),
        "eight words for: forward, backward, left, right, up, down, close gripper, open gripper",
    )


@dataclass(config=STRICT, frozen=True)
class PPOConfig:
    """PPO (Schulman et al. 2017) and everything around its loop."""

    run_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = setting(
        "vlm-agent", "names runs/RUN_NAME and checkpoints/RUN_NAME_*"
    )
    project_name: str = setting("vlm-agent", "project of the experiment tracker")
    output_dir: str = setting(".", "the folder that gets runs/ and checkpoints/")
    overwrite: bool = setting(False, "replace an earlier run of this name, unless it is resumed")
    seed: Annotated[int, Field(ge=0)] = setting(0, "decides everything random in the run")
    total_timesteps: Count = setting(100_000, "words said in training, over all environments")
    rollout_steps: Count = setting(128, "words per environment and update")
    num_envs: Count = setting(4, "environments per process")
    num_workers: Annotated[int, Field(ge=0)] = setting(
        0, "processes that run them, per process; 0 for one per core"
    )
    rollout_groups: Count = setting(
        2,
        "groups of environments in a rollout: one moves while the model scores another; 1 for none",
    )
    max_worker_restarts: Annotated[int, Field(ge=0)] = setting(
        3, "how often each process of environments is restarted before the run gives up"
    )
    worker_timeout: Positive = setting(
        60.0, "seconds without an answer after which such a process counts as hung"
    )
    learning_rate: Positive = setting(3e-5, "of the backbone or its adapters")
    value_learning_rate: Positive = setting(3e-4, "of the value head and an action head")
    lr_schedule: Literal["constant", "linear"] = setting(
        "constant", "linear: both learning rates fall to zero over the run"
    )
    clip_range: Positive = setting(0.2, "clipping of the probability ratio")
    clip_range_value: Positive | None = setting(
        None, "clipping of the value's change; none for a plain squared error"
    )
    gamma: Fraction = setting(0.99, "discount")
    gae_lambda: Fraction = setting(0.95, "lambda of generalised advantage estimation")
    value_lambda: Fraction | None = setting(
        None, "lambda of the value head's targets; none: gae_lambda"
    )
    value_epochs: Annotated[int, Field(ge=0)] = setting(
        0, "further passes over each rollout, after the update, in which only the value head learns"
    )
    n_epochs: Count = setting(4, "passes over each rollout")
    batch_size: Count = setting(4, "samples per minibatch and process")
    value_coef: Annotated[float, Field(ge=0)] = setting(0.5, "weight of the value loss")
    entropy_coef: Annotated[float, Field(ge=0)] = setting(0.01, "weight of the entropy bonus")
    max_grad_norm: Positive = setting(0.5, "gradients are clipped to this norm")
    normalize_advantage: bool = setting(True, "over the whole rollout and all processes")
    target_kl: Positive | None = setting(
        None, "stop an update after the epoch whose approximate KL exceeds this"
    )
    kl_coef: Annotated[float, Field(ge=0)] = setting(
        0.0, "rewards are lowered by this times the KL divergence from the start policy"
    )
    kl_estimator: Literal["k1", "k3"] = setting(
        "k1", "how that is estimated: k1: log-ratio; k3: never negative, of less variance"
    )
    recompute_log_probs: bool = setting(
        False,
        "score the rollout's words again before an update, where the batch's shape changes the "
        "rounding too much (first_ratio_error in bfloat16)",
    )
    feature_cache_gb: Annotated[float, Field(ge=0)] = setting(
        2.0,
        "host memory of each process for image features of a frozen vision tower, in GiB; what "
        "does not fit is computed again in each epoch",
    )
    critic_warmup_updates: Annotated[int, Field(ge=0)] = setting(
        0, "updates at the start in which only the value head learns"
    )
    curriculum: Literal["none", "reverse"] = setting(
        "none",
        "reverse: episodes begin on the way of the expert's demonstrations, at first near "
        "success, and earlier when the policy succeeds",
    )
    curriculum_threshold: Fraction = setting(
        0.7, "success rate of the farthest starts at which they move back; below half of it, forth"
    )
    curriculum_stride: Count = setting(3, "by how many words")
    curriculum_patience: Annotated[float, Field(ge=1)] = setting(
        2.0, "such an episode is over after so many times the expert's missing words, and a stride"
    )
    save_freq: Count = setting(10_000, "timesteps between checkpoints")
    eval_freq: Count = setting(10_000, "timesteps between evaluations")
    num_eval_episodes: Annotated[int, Field(ge=0)] = setting(
        10, "episodes of each evaluation; 0 for none"
    )
    eval_greedy: bool = setting(True, "evaluate with the most probable word, else sample")
    init_from: str | None = setting(
        None, "start from this policy: a folder, a name on the hub, or 'starter'"
    )
    resume_from: str | None = setting(
        None, "a checkpoint folder of this run to go on from, or 'latest'"
    )
    report_to: list[Literal["wandb", "tensorboard", "none"]] = setting(["none"], "trackers")
    wandb_mode: Literal["auto", "online", "offline"] = setting(
        "auto", "auto: online when logged in, else offline"
    )


@dataclass(config=STRICT, frozen=True)
class ImitationConfig:
    """Learning from the scripted expert: demonstrations, warm start, DAgger (Ross et al. 2011)."""

    demonstrations: str | None = setting(
        None, "the folder of the demonstrations; by default demonstrations/RUN_NAME"
    )
    num_demo_episodes: Count = setting(200, "episodes that the expert plays")
    demo_noise: Fraction = setting(
        0.06, "probability that a word of the expert begins a burst of one to four random ones"
    )
    sft_epochs: Count = setting(8, "passes over the demonstrations")
    sft_learning_rate: Positive = setting(
        1e-3, "of all weights; rises during the first twentieth, then falls to zero"
    )
    sft_batch_size: Count = setting(32, "moments per minibatch and process")
    dagger_rounds: Annotated[int, Field(ge=0)] = setting(
        1, "rounds in which the pupil speaks, the expert labels, and all there is is learnt"
    )
    dagger_words: Count = setting(4096, "words of each round, over all environments")
    dagger_epochs: Count = setting(3, "passes over everything after each round")
    dagger_learning_rate: Positive = setting(1e-3, "of these passes, with the same course")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole run, in the sections that its parts read."""

    env: EnvConfig
    prompt: PromptConfig
    model: ModelConfig
    ppo: PPOConfig
    imitation: ImitationConfig
    template: PromptTemplate

    def to_dict(self) -> dict[str, Any]:
        """All settings, flat, as they are written in a recipe file."""
        sections = (self.env, self.prompt, self.model, self.ppo, self.imitation)
        return {key: value for part in sections for key, value in dataclasses.asdict(part).items()}

    def to_yaml(self) -> str:
        """The resolved recipe; reading it gives the same run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


SECTIONS: tuple[type, ...] = (EnvConfig, PromptConfig, ModelConfig, PPOConfig, ImitationConfig)
_TYPES = {key: hint for cls in SECTIONS for key, hint in typing.get_type_hints(cls).items()}


def load_recipe(argv: Sequence[str] | None = None, prog: str = "vlm-agent") -> Recipe:
    """Read a recipe from a command line: ``--config FILE`` and ``--key value`` overrides.

    Raises:
        UserError: Listing every unknown key, wrong type, value out of range and combination that
            cannot work.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    config, overrides, problems = _parse_arguments(argv, prog)
    values: dict[str, Any] = {}
    search = []
    if config is not None:
        values = read_yaml(Path(config))
        search = [Path(config).resolve().parent, Path(config).resolve().parent.parent]
    return make_recipe({**values, **overrides}, search, problems)


def make_recipe(
    values: dict[str, Any], search: Sequence[Path] = (), problems: Iterable[str] = ()
) -> Recipe:
    """Check settings and put them together.

    Args:
        values: Flat settings; what is left out takes its default.
        search: Folders, after the current one, in which the prompt template is looked for.
        problems: Sentences to report along with what is found here.

    Raises:
        UserError: As for :func:`load_recipe`.
    """
    found: dict[str, str] = {}
    for key in values:
        if key not in _TYPES:
            found[str(key)] = unknown_name("key", key, _TYPES)
    env, prompt, model, ppo, imitation = (_make_section(c, values, found) for c in SECTIONS)
    for key, problem in _combination_problems(env, prompt, model, ppo).items():
        found.setdefault(key, problem)
    template = _make_template(env, prompt, search, found)
    lines = [*problems, *(f"{key}: {problem}" for key, problem in found.items())]
    if lines:
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise UserError("\n  ".join([f"{count} in the recipe:", *lines]))
    assert template is not None
    return Recipe(env, prompt, model, ppo, imitation, template)


def _make_section(cls: type, values: dict[str, Any], found: dict[str, str]) -> Any:
    """One section of the recipe. What is wrong goes to ``found``, and its default is taken."""
    own = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
    for key, value in own.items():
        if typing.get_origin(_TYPES[key]) is list and isinstance(value, str):
            own[key] = [value]
    try:
        return cls(**own)
    except pydantic.ValidationError as error:
        for fault in error.errors():
            key = str(fault["loc"][0])
            found[key] = f"{own[key]!r}: {fault['msg'].replace('Input', 'it')}"
        return cls(**{key: value for key, value in own.items() if key not in found})


def _combination_problems(
    env: EnvConfig, prompt: PromptConfig, model: ModelConfig, ppo: PPOConfig
) -> dict[str, str]:
    """Settings that are right by themselves but cannot work, or not with the others."""
    found = name_problems(env.task, env.robot)
    if words := word_problems(prompt.action_words):
        found["action_words"] = "; ".join(words)
    if model.lora_dropout:
        found["lora_dropout"] = (
            f"{model.lora_dropout} is not 0: with dropout the update sees another policy than "
            "the rollout, and PPO's ratios are wrong"
        )
    if model.dtype == "bfloat16" and not model.use_peft:
        found["dtype"] = (
            "'bfloat16' weights are too coarse for full fine-tuning's small steps: add "
            "use_peft: true, or keep float32 weights and set mixed_precision: bf16 in the "
            "accelerate config"
        )
    if model.lora_vision_modules and not model.use_peft:
        found["lora_vision_modules"] = "names layers to adapt, but use_peft is false"
    if model.use_peft and not model.lora_target_modules and not model.lora_vision_modules:
        found["lora_target_modules"] = "the list is empty, nothing would be trained"
    if model.is_quantized and not model.use_peft:
        key = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
        found[key] = "quantised weights cannot be trained: add use_peft: true"
    if model.load_in_4bit and model.load_in_8bit:
        found["load_in_8bit"] = "is true beside load_in_4bit; choose one of them"
    if model.lora_vision_modules and model.freeze_vision:
        found["freeze_vision"] = "is true, but lora_vision_modules names layers to adapt"
    if ppo.kl_coef and model.scoring == "action_head":
        found["kl_coef"] = (
            "is not 0, but scoring: action_head starts from no policy worth keeping to"
        )
    name = model.model_name_or_path
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        found["model_name_or_path"] = f"there is no folder {name!r}"
    if ppo.num_workers > ppo.num_envs:
        found["num_workers"] = f"{ppo.num_workers} is more than num_envs ({ppo.num_envs})"
    samples = ppo.rollout_steps * ppo.num_envs
    if ppo.batch_size > samples:
        found["batch_size"] = f"{ppo.batch_size} is more than rollout_steps x num_envs ({samples})"
    if "none" in ppo.report_to and len(ppo.report_to) > 1:
        found["report_to"] = "'none' cannot stand beside other trackers"
    return found


def _make_template(
    env: EnvConfig, prompt: PromptConfig, search: Sequence[Path], found: dict[str, str]
) -> PromptTemplate | None:
    if {"prompt_template", "action_words", "task_description"} & set(found):
        return None
    try:
        return PromptTemplate(
            load_template_source(prompt.prompt_template, search),
            prompt.task_description or get_task(env.task).description,
            env.robot,
            tuple(prompt.action_words),
        )
    except UserError as error:
        found["prompt_template"] = str(error)
        return None


def _parse_arguments(argv: list[str], prog: str) -> tuple[str | None, dict[str, Any], list[str]]:
    """The recipe's path, the overrides and the problems of a command line."""
    from trl import TrlParser

    # TRL's parser makes the flags and the help text from the dataclasses. It would stop at the
    # first fault and convert types itself; so it only collects, and make_recipe checks.
    parser = TrlParser(list(SECTIONS), prog=prog, allow_abbrev=False)
    parser.add_argument("--config", help="the recipe file; flags override what it says")
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    for action in parser._actions:
        action.type = None
        action.choices = None
        action.default = argparse.SUPPRESS
    namespace, unknown = parser.parse_known_args(argv)
    options = [f"--{key}" for key in _TYPES]
    problems = [
        f"{word}: {unknown_name('option', word.split('=')[0], options)}"
        for word in unknown
        if word.startswith("--")
    ]
    if unknown and not problems:
        problems = [f"unexpected words: {' '.join(unknown)}"]
    raw = vars(namespace)
    config = raw.pop("config", None)
    return config, {key: _from_text(key, value) for key, value in raw.items()}, problems


def override_env(env: EnvConfig, words: Sequence[str]) -> EnvConfig:
    """A scene with settings changed by ``--key value`` words of a command line.

    Raises:
        UserError: Naming every word that is no setting of the scene, or no value for it.
    """
    keys = [field.name for field in dataclasses.fields(EnvConfig)]
    found: dict[str, str] = {}
    values = dataclasses.asdict(env)
    for option, text in zip(words[::2], words[1::2], strict=False):
        key = option.removeprefix("--")
        if key in keys and option.startswith("--"):
            values[key] = _from_text(key, text)
        else:
            found[option] = unknown_name("option", option, [f"--{name}" for name in keys])
    if len(words) % 2:
        found.setdefault(words[-1], "expected --key value")
    changed = _make_section(EnvConfig, values, found)
    for key, problem in {**name_problems(changed.task, changed.robot), **found}.items():
        raise UserError(f"{key}: {problem}")
    return changed


def _from_text(key: str, text: Any) -> Any:
    """A command-line word as the value it would be in a YAML file."""
    if isinstance(text, list):
        return [_from_text(key, part) for part in text]
    if not isinstance(text, str):
        return text
    hint = _TYPES[key]
    if type(None) in typing.get_args(hint) and text.lower() in ("none", "null"):
        return None
    if str in (hint, *typing.get_args(hint)) or typing.get_origin(hint) is list:
        return text
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, UserError):
        return text  # no value of any type; make_recipe says so with the key
