"""The sections of a recipe, by what reads them; in the file they are one flat list of keys.

To add a key, add a field here; from outside of the package, a section of one's own with
:func:`vlm_agent.recipe.keys.register_section`.
"""

from __future__ import annotations

import re
import typing
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from vlm_agent.common.settings import (
    STRICT,
    Count,
    Fraction,
    Natural,
    Positive,
    Seconds,
    UserPath,
    setting,
)


@dataclass(config=STRICT, frozen=True)
class PromptConfig:
    """What the model reads and which words it may say."""

    prompt_template: UserPath | None = setting(
        None,
        "the Jinja file of the prompt; by default prompts/default.jinja for a robot's arm, "
        "prompts/world.jinja for a Gymnasium environment",
    )
    task_description: str | None = setting(
        None, "the task in a sentence; by default the task's own"
    )
    action_words: list[str] | None = setting(
        None, "other words for those that there are, in their order"
    )


Package = Literal["torch", "transformers", "peft", "numpy", "robosuite", "mujoco"]
"""Another version of one may compute other numbers."""

Lesser = Literal[Package, "model_revision", "seed", "gamma", "num_eval_episodes", "eval_greedy"]
"""With another one a run can go on, to another end: packages by their versions, and settings."""


@dataclass(config=STRICT, frozen=True)
class RunConfig:
    """Which run this is, how long it is, where it begins and what it leaves."""

    run_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = setting(
        "vlm-agent", "names runs/RUN_NAME and checkpoints/RUN_NAME_*"
    )
    output_dir: UserPath = setting(".", "the folder that gets runs/ and checkpoints/")
    overwrite: bool = setting(False, "replace an earlier run of this name, unless it is resumed")
    seed: Natural = setting(0, "decides everything random in the run")
    total_timesteps: Count = setting(100_000, "words said in training, over all environments")
    save_freq: Count = setting(10_000, "timesteps between checkpoints")
    save_total_limit: Annotated[int, Field(ge=2)] | None = setting(
        None, "PPO: keep so many checkpoints, and delete older ones; the best is kept besides"
    )
    init_from: UserPath | None = setting(
        None, "start from this policy: a folder, a name on the hub, or the name of one that ships"
    )
    resume_from: UserPath | None = setting(
        None,
        "a checkpoint folder of this run to go on from, 'latest', or 'auto': the latest, if any",
    )
    resume_anyway: list[Lesser] = setting(
        [],
        "settings or packages of which the checkpoint may have another value, by name: "
        + ", ".join(typing.get_args(Lesser)),
    )
    max_hours: Annotated[float, Field(gt=0, le=1e5)] | None = setting(
        None, "end with a checkpoint after so many hours, counted from this start"
    )
    rank_timeout: Seconds = setting(
        600.0, "seconds that processes wait for one that does not join them, before all end"
    )
    trust_modules: bool = setting(
        False, "import the modules that the policy of init_from names and this recipe does not"
    )


@dataclass(config=STRICT, frozen=True)
class RolloutConfig:
    """How words are said and environments run."""

    rollout_steps: Count = setting(128, "words per environment and update")
    num_envs: Annotated[int, Field(ge=1, le=4096)] = setting(4, "environments per process")
    num_workers: Natural = setting(0, "processes that run them, per process; 0 for one per core")
    rollout_groups: Count = setting(
        2,
        "groups of environments in a rollout: one moves while the model scores another; 1 for none",
    )
    async_rollout: Annotated[int, Field(ge=0, le=1)] = setting(
        0, "1: collect the next rollout while this one is learnt from, with the policy before that"
    )
    max_worker_restarts: Natural = setting(
        3, "how often each process of environments is restarted before the run gives up"
    )
    worker_timeout: Seconds = setting(
        60.0, "seconds without an answer after which such a process counts as hung"
    )
    feature_cache_gb: Annotated[float, Field(ge=0)] = setting(
        2.0,
        "host memory of each process for what frozen parts made of a rollout's words (image "
        "features, states below the trained layers), in GiB; what does not fit is computed again "
        "in each epoch",
    )


@dataclass(config=STRICT, frozen=True)
class PPOConfig:
    """An update (Schulman et al. 2017)."""

    advantage: Literal["gae", "group"] = setting(
        "gae",
        "how much better than expected a word was. gae: by a critic; group: by how much its "
        "episode's return exceeds those of others with the same beginning (GRPO, RLOO)",
    )
    group_size: Annotated[int, Field(ge=2)] = setting(
        8, "group: environments that play the same episode; num_envs is a multiple of it"
    )
    group_rounds: Count = setting(
        1, "group: whole episodes of each environment in a rollout, in place of rollout_steps"
    )
    group_baseline: Literal["mean", "leave_one_out"] = setting(
        "mean",
        "group: a return is compared with the mean of the group (GRPO), or of the others (RLOO)",
    )
    group_std: bool = setting(
        True, "group: advantages are divided by the standard deviation of the group's returns"
    )
    learning_rate: Positive = setting(3e-5, "of the backbone or its adapters")
    lr_schedule: Literal["constant", "linear"] = setting(
        "constant", "linear: both learning rates fall to zero over the run"
    )
    clip_range: Positive = setting(0.2, "clipping of the probability ratio")
    gamma: Fraction = setting(0.99, "discount")
    gae_lambda: Fraction = setting(0.95, "lambda of generalised advantage estimation")
    n_epochs: Count = setting(4, "passes over each rollout")
    batch_size: Count = setting(4, "samples per minibatch and process: what a gradient is of")
    value_coef: Annotated[float, Field(ge=0)] = setting(0.5, "weight of the value loss")
    entropy_coef: Annotated[float, Field(ge=0)] = setting(0.01, "weight of the entropy bonus")
    max_grad_norm: Positive = setting(0.5, "gradients are clipped to this norm")
    micro_batch_size: Count | None = setting(
        None,
        "samples of a minibatch that are in memory at once, in PPO and in the warm start; "
        "none: all. The gradient is the same",
    )
    normalize_advantage: bool = setting(True, "gae: over the whole rollout and all processes")
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


@dataclass(config=STRICT, frozen=True)
class CriticConfig:
    """What judges states while PPO learns."""

    value_input: Literal["hidden", "state"] = setting(
        "hidden",
        "what the value head reads: the hidden state that the words are scored from; or, in "
        "training alone, the scene's state, which no word depends on (asymmetric actor-critic)",
    )
    value_learning_rate: Positive = setting(3e-4, "of the value head and an action head")
    value_lambda: Fraction | None = setting(None, "lambda of its targets; none: gae_lambda")
    value_epochs: Natural = setting(
        0, "further passes over each rollout, after the update, in which only the value head learns"
    )
    clip_range_value: Positive | None = setting(None, "clip the value's change; none: do not")
    critic_warmup_updates: Natural = setting(0, "first updates, in which it alone learns")
    state_coef: Annotated[float, Field(ge=0)] = setting(
        0.0, "weight of a loss by which the hidden state has to tell the scene's: learning to see"
    )

    @property
    def needs_state(self) -> bool:
        """Whether the environments have to tell their privileged state."""
        return self.value_input == "state" or self.state_coef > 0


@dataclass(config=STRICT, frozen=True)
class CurriculumConfig:
    """Where episodes begin."""

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


@dataclass(config=STRICT, frozen=True)
class EvaluationConfig:
    """The episodes by which a run's best policy is chosen."""

    eval_freq: Count = setting(10_000, "timesteps between evaluations")
    num_eval_episodes: Natural = setting(10, "episodes of each evaluation; 0 for none")
    eval_greedy: bool = setting(True, "evaluate with the most probable word, else sample")


TRACKERS = (
    "wandb", "tensorboard", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab",
)  # fmt: skip
"""Those that accelerate knows by their names, which are their packages' names, too."""


def _is_tracker(name: str) -> str:
    if name not in (*TRACKERS, "none") and not re.fullmatch(r"[\w.]+:\w+", name):
        message = f"it should be {', '.join(TRACKERS)}, none, or module:Class"
        raise PydanticCustomError("tracker", message)
    return name


@dataclass(config=STRICT, frozen=True)
class TrackingConfig:
    """Who is told how a run goes, besides its ``metrics.jsonl``."""

    project_name: str = setting("vlm-agent", "project of the experiment tracker")
    report_to: list[Annotated[str, AfterValidator(_is_tracker)]] = setting(
        ["none"],
        f"trackers: {', '.join(TRACKERS)}, none, or module:Class, an accelerate GeneralTracker "
        "of your own",
    )
    wandb_mode: Literal["auto", "online", "offline"] = setting(
        "auto", "auto: online when logged in, else offline"
    )
    report_episodes: Annotated[int, Field(ge=0, le=200)] = setting(
        6, "episodes of the last evaluation that report.html shows word by word"
    )
    push_to_hub: str | None = setting(
        None, "USER/NAME on the Hugging Face hub that gets the best policy, with a card, at the end"
    )
    hub_private_repo: bool = setting(False, "for you alone, if it is not there yet")


@dataclass(config=STRICT, frozen=True)
class ImitationConfig:
    """Learning from the scripted expert: demonstrations, warm start, DAgger (Ross et al. 2011)."""

    demonstrations: UserPath | None = setting(
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
    dagger_rounds: Natural = setting(
        1, "rounds in which the student speaks, the expert labels, and all there is is learnt"
    )
    dagger_words: Count = setting(4096, "words of each round, over all environments")
    dagger_epochs: Count = setting(3, "passes over everything after each round")
    dagger_replay: Fraction = setting(1.0, "share of what was known before that a pass goes over")
    dagger_learning_rate: Positive = setting(1e-3, "of these passes, with the same course")
