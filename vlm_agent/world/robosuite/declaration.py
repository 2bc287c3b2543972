"""What a robosuite world declares, which is known without making it."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.world.actions import ActionVocabulary, Motion
from vlm_agent.world.config import REWARDS, EnvConfig
from vlm_agent.world.contract import WorldSpec
from vlm_agent.world.facts import ROBOT_FACTS
from vlm_agent.world.instructions import Instructions, Sentences
from vlm_agent.world.robosuite.appearance.randomize import randomize_problems
from vlm_agent.world.robosuite.names import name_problems
from vlm_agent.world.robosuite.scene import PRIVILEGED_STATE, Stage
from vlm_agent.world.robosuite.tasks import Task, get_task
from vlm_agent.world.robosuite.words import WORD_TABLES
from vlm_agent.world.vocabulary import read_words


def declare_robot(config: EnvConfig) -> WorldSpec:
    """What the tool is to know of a robot's world.

    Raises:
        UserError: A setting cannot be used; the message begins with the key.
    """
    names = config.tasks or [config.task]
    for name in names:
        for key, problem in name_problems(name, config.robot).items():
            raise UserError(f"{'tasks' if key == 'task' and config.tasks else key}: {problem}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"tasks: {twice[0]!r} stands there twice")
    if REWARDS.get(config.reward) == "Gymnasium":
        raise UserError(
            "reward: 'own' is a Gymnasium environment's; expected progress, staged, sparse or "
            "module:function"
        )
    for key in ("env_kwargs", "picture"):
        if getattr(config, key):
            raise UserError(f"{key}: is for a Gymnasium environment, and env names none")
    for key, problem in randomize_problems(config.randomize).items():
        raise UserError(f"{key}: {problem}")
    tasks = [get_task(name) for name in names]
    usual: Sentences = [tasks[0].description]
    if config.tasks:
        usual = {name: [task.description] for name, task in zip(names, tasks, strict=True)}
    return WorldSpec(
        vocabulary=_vocabulary(config),
        instructions=Instructions(
            config.instructions or usual, config.held_out_instructions, config.paraphrases
        ),
        own_facts=ROBOT_FACTS,
        stages=tuple(stage.name.lower() for stage in Stage if stage),
        privileged_names=PRIVILEGED_STATE,
        no_expert=_no_expert(dict(zip(names, tasks, strict=True))),
        can_be_restored=all(task.can_be_restored for task in tasks),
        replays=None if any(":" in name for name in names) else True,
        robot=config.robot,
        history=config.history,
    )


def _no_expert(tasks: Mapping[str, Task]) -> str | None:
    lacking = [name for name, task in tasks.items() if task.target is None]
    return f"task: the scripted expert knows no way to solve {lacking[0]!r}" if lacking else None


def _vocabulary(config: EnvConfig) -> ActionVocabulary:
    words = "eight" if config.words is None else config.words
    if not isinstance(words, Mapping):
        if words not in WORD_TABLES:
            raise UserError(f"words: {unknown_name('table of words', words, WORD_TABLES)}")
        return ActionVocabulary(WORD_TABLES[words])
    vocabulary = read_words(words)
    for word, meaning in vocabulary.meanings.items():
        if not isinstance(meaning, Motion):
            raise UserError(
                f"words: {word!r}: expected a motion, such as {{direction: left}}, since a robot "
                "is to be moved"
            )
    return vocabulary
