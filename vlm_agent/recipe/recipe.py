"""``Recipe``: what a run is, checked in one place before anything heavy starts."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.common.strict_yaml import read_yaml
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.prompts import PromptTemplate, load_template_source
from vlm_agent.recipe.checks import combination_problems
from vlm_agent.recipe.keys import OWN, SECTIONS, key_types
from vlm_agent.recipe.sections import (
    CriticConfig,
    CurriculumConfig,
    EvaluationConfig,
    ImitationConfig,
    PPOConfig,
    PromptConfig,
    RolloutConfig,
    RunConfig,
    TrackingConfig,
)
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.facts import all_facts
from vlm_agent.world.pool.placement import cores_per_process, rendering_gpu
from vlm_agent.world.pool.pool import EnvPool
from vlm_agent.world.pool.worker import MakeEnv
from vlm_agent.world.registry import declare


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole run, in the sections that its parts read.

    Attributes:
        template: The checked prompt.
        extra: Sections from outside of the package, by their names.
    """

    env: EnvConfig
    prompt: PromptConfig
    model: ModelConfig
    run: RunConfig
    rollout: RolloutConfig
    ppo: PPOConfig
    critic: CriticConfig
    curriculum: CurriculumConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig
    imitation: ImitationConfig
    template: PromptTemplate
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, recipe: str | Path | None = None, **settings: Any) -> Recipe:
        """A recipe from a file, with single settings changed.

        Args:
            recipe: A YAML file, or the name of a recipe that ships (``"quick"``); all defaults
                without one.
            settings: Keys of a recipe, which override what the file says.

        Raises:
            UserError: Listing every unknown key, wrong type, value out of range and combination
                that cannot work.
        """
        values, search = read_recipe(recipe) if recipe is not None else ({}, [])
        return make_recipe({**values, **settings}, search)

    def sections(self) -> Iterator[Any]:
        """All sections, the package's own first."""
        yield from (getattr(self, name) for name in OWN)
        yield from self.extra.values()

    def to_dict(self) -> dict[str, Any]:
        """All settings, flat, as they are written in a recipe file."""
        return {k: v for part in self.sections() for k, v in dataclasses.asdict(part).items()}

    def to_yaml(self) -> str:
        """The resolved recipe; reading it gives the same run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def make_pool(self, make_env: MakeEnv = LanguageActionEnv) -> EnvPool:
        """The environments of one process of this run; use it as a context manager.

        Args:
            make_env: Makes an environment: ``LanguageActionEnv``, ``ExpertEnv`` for imitation, or
                another importable name.

        Raises:
            UserError: They cannot be made so.
        """
        import torch  # only here: a recipe is read without it

        return EnvPool(
            self.env,
            self.rollout.num_envs,
            self.rollout.num_workers or cores_per_process(os.environ),
            self.ppo.gamma,
            gpu=rendering_gpu(os.environ, torch.cuda.device_count()),
            timeout=self.rollout.worker_timeout,
            max_restarts=self.rollout.max_worker_restarts,
            make_env=make_env,
            facts=self.template.fact_names,
            privileged_state=self.critic.needs_state,
        )


def read_recipe(recipe: str | Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings of a recipe file, and where to look for what it names.

    Args:
        recipe: A file, or the name of a recipe that ships.

    Raises:
        UserError: There is none, or it is no mapping.
    """
    path = recipe_file(recipe)
    folder = path.resolve().parent
    return read_yaml(path), [folder, folder.parent]


def recipe_file(recipe: str | Path) -> Path:
    """The file of a recipe, which may be the name of one that ships.

    Raises:
        UserError: None of that name ships.
    """
    path, shipped = Path(recipe), SHIPPED / "recipes"
    if not path.is_file() and path.name == str(recipe) and not path.suffix:
        path = shipped / f"{recipe}.yaml"
        if not path.is_file():
            names = [known.stem for known in shipped.glob("*.yaml")]
            raise UserError(f"config: {unknown_name('recipe', str(recipe), names)}")
    return path


def make_recipe(
    values: Mapping[str, Any], search: Sequence[Path] = (), problems: Iterable[str] = ()
) -> Recipe:
    """Check settings and put them together.

    Args:
        values: Flat settings; what is left out takes its default.
        search: Folders, after the current one, in which the prompt template is looked for.
        problems: Sentences to report along with what is found here.

    Raises:
        UserError: As for :meth:`Recipe.load`.
    """
    known = key_types()
    found = {str(key): unknown_name("key", key, known) for key in values if key not in known}
    sections = {name: make_section(cls, values, found) for name, cls in SECTIONS.items()}
    for key, problem in combination_problems(sections).items():
        found.setdefault(key, problem)
    template = _make_template(sections["env"], sections["prompt"], search, found)
    lines = [*problems, *(f"{key}: {problem}" for key, problem in found.items())]
    if lines:
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise UserError("\n  ".join([f"{count} in the recipe:", *lines]))
    assert template is not None
    extra = {name: section for name, section in sections.items() if name not in OWN}
    return Recipe(**{name: sections[name] for name in OWN}, template=template, extra=extra)


def make_section(cls: type, values: Mapping[str, Any], found: dict[str, str]) -> Any:
    """One section of a recipe. What is wrong goes to ``found``, and its default is taken."""
    types = key_types()
    own = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
    for key, value in own.items():
        if typing.get_origin(types[key]) is list and isinstance(value, str):
            own[key] = [value]
    try:
        return cls(**own)
    except pydantic.ValidationError as error:
        for fault in error.errors():
            key = str(fault["loc"][0])
            found[key] = f"{own[key]!r}: {fault['msg'].replace('Input', 'it')}"
        return cls(**{key: value for key, value in own.items() if key not in found})


def _make_template(
    env: EnvConfig, prompt: PromptConfig, search: Sequence[Path], found: dict[str, str]
) -> PromptTemplate | None:
    world = {field.name for cls in (EnvConfig, PromptConfig) for field in dataclasses.fields(cls)}
    if (world | {"MUJOCO_GL"}) & set(found):  # the world is not known then
        return None
    try:
        return world_template(env, prompt, search)
    except UserError as error:
        found["prompt_template"] = str(error)
        return None


def world_template(
    env: EnvConfig, prompt: PromptConfig | None = None, search: Sequence[Path] = ()
) -> PromptTemplate:
    """The prompt of a world.

    Args:
        env: The world.
        prompt: What a recipe says of it; by default what the world itself does.
        search: Folders, after the current one, in which the template is looked for.

    Raises:
        UserError: There is no such template, or it cannot be used.
    """
    prompt = prompt or PromptConfig()
    spec = declare(env)
    words = spec.vocabulary.words if prompt.action_words is None else tuple(prompt.action_words)
    sentences = spec.instructions.sentences
    usual = "prompts/default.jinja" if env.env is None else "prompts/world.jinja"
    return PromptTemplate(
        load_template_source(prompt.prompt_template or usual, [*search, SHIPPED]),
        prompt.task_description or sentences[0],
        spec.robot,
        words,
        all_facts(spec.own_facts, words, sentences, spec.history),
        spec.vocabulary.senseless,
    )
