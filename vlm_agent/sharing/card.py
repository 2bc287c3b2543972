"""The model card of a policy: what it does, how well, how it came about, how to load it."""

from __future__ import annotations

from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vlm_agent.policy.artifact import is_local
from vlm_agent.policy.config import TINY
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.keys import default_settings

_TEXT = """---
{metadata}
---

# {name}: a policy that moves a robot arm with words

A vision-language model that looks through a camera, reads a prompt, and says one of {count} words
at a time. It was trained in {task} with vlm-agent.
{film}
## Use

```python
from vlm_agent import VLMPolicy

policy = VLMPolicy.from_pretrained("{repository}").eval()
```

```bash
vlm-agent eval --policy {repository} --num_eval_episodes 20{trust}
vlm-agent play --policy {repository}{trust}
```

Its words: {words}.

Its prompt, a Jinja template in which `image` is the picture:

```jinja
{prompt}
```

## How good it is

{evaluation}

## How it came about

{base}{steps}

{curves}What its recipe sets, where that is not the default:

```yaml
{recipe}
```

## Limits

It was measured in simulation, in the scene above, and on no robot. In scenes that differ from that,
it may do anything that its words can do; `vlm-agent suite` measures it where colours, light,
cameras, sentences and objects are others.
"""

NOT_TOLD = ("output_dir", "run_name", "overwrite", "resume_from", "resume_anyway", "report_to")
"""Keys of a recipe that are of no use elsewhere."""


def model_card(
    policy: VLMPolicy,
    repository: str,
    recipe: dict[str, Any],
    evaluation: dict[str, Any] | None,
    timesteps: int | None = None,
    files: tuple[str, ...] = (),
    licence: str = "apache-2.0",
) -> ModelCard:
    """The card.

    Args:
        policy: The policy.
        repository: Its name on the hub.
        recipe: Its settings, without places of this machine.
        evaluation: What an evaluation wrote; ``None`` if it was not measured.
        timesteps: How many words it was trained for.
        files: What lies beside it: ``film.mp4``, ``curves.png``.
        licence: Of the weights.
    """
    world = recipe.get("env") or ", ".join(recipe.get("tasks") or []) or recipe.get("task", "?")
    name = repository.rpartition("/")[2]
    base = str(recipe.get("model_name_or_path", policy.config.model_name_or_path))
    is_known = base != TINY and not is_local(policy.config.model_name_or_path)
    data = ModelCardData(
        license=licence,
        library_name="vlm-agent",
        pipeline_tag="robotics",
        tags=["vlm-agent", "robotics", "reinforcement-learning", "vision-language-model"],
        base_model=base if is_known else None,
        model_name=name,
        eval_results=None if evaluation is None else [_result(evaluation, world)],
    )
    trust = " --trust_modules true" if ":" in world else ""
    steps = f" It was trained for {timesteps:,} words." if timesteps else ""
    return ModelCard(
        _TEXT.format(
            metadata=data.to_yaml().strip(),
            name=name,
            count=len(policy.words),
            task=f"`{world}`",
            film="\n[A film of an episode](film.mp4).\n" if "film.mp4" in files else "",
            repository=repository,
            trust=trust,
            words=", ".join(f"`{word}`" for word in policy.words),
            prompt=policy.encoder.template.source.strip(),
            evaluation=_table(evaluation),
            base=_base(base),
            steps=steps,
            curves="![Learning curves](curves.png)\n\n" if "curves.png" in files else "",
            recipe=_changed(recipe),
        )
    )


def _result(evaluation: dict[str, Any], world: str) -> EvalResult:
    return EvalResult(
        task_type="robotics",
        task_name="success by words",
        dataset_type="vlm-agent",
        dataset_name=f"{world}, {evaluation['num_eval_episodes']} {evaluation['split']} episodes",
        metric_type="success_rate",
        metric_name="success rate",
        metric_value=round(float(evaluation["success_rate"]), 4),
        verified=False,
    )


def _table(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "It was not measured."
    mode = "greedy" if evaluation.get("greedy", True) else "sampled"
    low, high = 100 * evaluation["ci95_low"], 100 * evaluation["ci95_high"]
    return (
        "| episodes | success | 95 % (Wilson) | words in an episode | return |\n"
        "|---|---|---|---|---|\n"
        f"| {evaluation['num_eval_episodes']} {evaluation['split']}, {mode} "
        f"| {100 * evaluation['success_rate']:.1f} % | {low:.1f} to {high:.1f} % "
        f"| {evaluation['mean_length']:.1f} | {evaluation['mean_return']:.3f} |\n\n"
        "Every episode's seed and words are in [evaluation.json](evaluation.json): `vlm-agent show "
        "--episode evaluation.json --number 0` plays one again."
    )


def _base(base: str) -> str:
    if base == TINY:
        return "Its model is vlm-agent's `tiny`: 1.4 million parameters that were drawn at random."
    return f"Its model began as `{base}`."


def _changed(recipe: dict[str, Any]) -> str:
    """The settings that are not the defaults, as YAML."""
    usual = default_settings()
    own = {
        key: value
        for key, value in recipe.items()
        if key not in NOT_TOLD and value is not None and usual.get(key) != value
    }
    return yaml.safe_dump(own, sort_keys=False, allow_unicode=True).strip()
