"""``vlm-agent pretrained``: what a pretrained language model is worth where its words move a robot.

The same model goes the same road twice, with SmolLM2's weights in its language model and with
random ones, and once more in 4 bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.evaluation.evaluate import read_result
from vlm_agent.policy.building import build_policy
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.rollout.collector import RolloutCollector
from vlm_agent.rollout.sources import FreshEpisodes
from vlm_agent.runs.folders import RunFolders
from vlm_agent.studies.road import Road
from vlm_agent.studies.smolvlm import KINDS
from vlm_agent.studies.stages import Stage, hardware, read_hours, run_stages

CONFIG = Path("recipes/pretrained.yaml")

FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pretrained": ("pretrained", ()),
    "random": ("random", ()),
    "pretrained, 4 bits": ("pretrained", ("--load_in_4bit", "true")),
}
"""Name of a row -> whose weights, and what is different from the recipes."""

WORDS = 256
"""How many words of an untrained model are looked at."""

KEPT = ("success_rate", "ci95_low", "ci95_high", "mean_length", "num_eval_episodes")


class Pretrained:
    """The models and the roads that they go.

    Args:
        folder: Where everything is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made = tuple(folder / "models" / kind for kind in KINDS)
        command = ("vlm_agent.cli", "pretrained", "--make_models", str(folder / "models"))
        self.models = Stage("models", command, made[-1], folder=folder / "models")

    def road(self, form: str) -> Road:
        """The road of one form."""
        kind, change = FORMS[form]
        place = self.folder / form.replace(", ", "_").replace(" ", "_")
        words = ("--model_name_or_path", str(self.folder / "models" / kind))
        return Road(CONFIG, (*words, "--output_dir", str(place), *change))

    def stages(self, form: str) -> list[Stage]:
        """Its stages, and test episodes with the warm start as well."""
        road = self.road(form)
        stages = list(road.stages())
        if road.start is None:
            raise UserError(f"{road.begins} was made otherwise: delete it, or take another folder")
        start = load_recipe(["--config", str(road.start), *road.overrides])
        begins = RunFolders(start)
        return [*stages, road.evaluation(start, begins.final, f"warm start: {begins.name}")]


def run_pretrained(folder: Path, output: Path, forms: Sequence[str] = ()) -> dict[str, Any]:
    """Run what has not been run; write what came of it so far, form by form.

    Args:
        folder: Where everything is made.
        output: The JSON file.
        forms: Which; all by default.

    Raises:
        UserError: There is no such form, or a stage failed.
    """
    for form in forms:
        if form not in FORMS:
            raise UserError(f"forms: {unknown_name('form', form, FORMS)}")
    study = Pretrained(folder)
    run_stages([study.models], folder)
    for form in forms or FORMS:
        stages = study.stages(form)
        run_stages(stages, study.road(form).folder)
        write_pretrained(study, output)
    return dict(json.loads(output.read_text()))


def write_pretrained(study: Pretrained, output: Path) -> None:
    """Put what has been measured into one JSON file."""
    known = json.loads(output.read_text()) if output.is_file() else {"rows": []}
    rows = []
    for form in FORMS:
        road = study.road(form)
        results = {s.name: s.makes for s in study.stages(form) if s.name.startswith("evaluation")}
        if not all(path.is_file() for path in results.values()):
            rows += [row for row in known["rows"] if row["model"] == form]
            continue
        earlier = [row for row in known["rows"] if row["model"] == form]
        key = "vocabulary_share_untrained"
        share = earlier[0][key] if earlier else vocabulary_share(road)
        hours = sum(read_hours(road.folder).values())
        for name, path in sorted(results.items(), reverse=True):
            result = read_result(path)
            rows.append(
                {
                    "model": form,
                    "policy": "warm start" if name.endswith("_start") else "PPO from it",
                    **{key: result[key] for key in KEPT},
                    key: share,
                    "hours_of_the_road": round(hours, 2),
                }
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")


def vocabulary_share(road: Road) -> float:
    """How much of the vocabulary's probability the words have before any training, on average."""
    recipe = road.recipe
    policy = build_policy(recipe.model, recipe.template, recipe.run.seed).eval()
    with recipe.make_pool() as pool:
        collector = RolloutCollector(pool, FreshEpisodes(recipe.run.seed), recipe.run.seed)
        steps = WORDS // pool.num_envs
        rollout, _ = collector.collect_rollout(policy, steps)
    observations = rollout.observations.flatten()
    shares = [
        policy.vocabulary_share(**policy.encode(observations[index]))
        for index in np.array_split(np.arange(len(observations)), steps)
    ]
    return float(np.concatenate([share.cpu().numpy() for share in shares]).mean())
