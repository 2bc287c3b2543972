"""What a robosuite world declares, which is known without making it."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.world.actions import EIGHT, ActionVocabulary, Motion
from vlm_agent.world.config import REWARDS, EnvConfig
from vlm_agent.world.contract import WorldSpec
from vlm_agent.world.facts import ROBOT_FACTS
from vlm_agent.world.instructions import Instructions
from vlm_agent.world.robosuite.names import name_problems
from vlm_agent.world.robosuite.scene import PRIVILEGED_STATE, Stage
from vlm_agent.world.robosuite.tasks import TASKS, get_task
from vlm_agent.world.vocabulary import read_words

WORD_TABLES = {"eight": EIGHT}


def declare_robot(config: EnvConfig) -> WorldSpec:
    """What the tool is to know of a robot's world.

    Raises:
        UserError: A setting cannot be used; the message begins with the key.
    """
    for key, problem in name_problems(config.task, config.robot).items():
        raise UserError(f"{key}: {problem}")
    if REWARDS.get(config.reward) == "Gymnasium":
        raise UserError("reward: 'own' is a Gymnasium environment's; expected progress, staged, …")
    task = get_task(config.task)
    return WorldSpec(
        vocabulary=_vocabulary(config),
        instructions=Instructions(
            config.instructions or [task.description],
            config.held_out_instructions,
            config.paraphrases,
        ),
        own_facts=ROBOT_FACTS,
        stages=tuple(stage.name.lower() for stage in Stage if stage),
        privileged_names=PRIVILEGED_STATE,
        has_expert=task.target is not None,
        can_be_restored=config.task in TASKS,
        replays=True,
        robot=config.robot,
    )


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
