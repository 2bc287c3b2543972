"""``vlm-agent keys``, ``prompt`` and ``show``: what there is to set, to read and to see."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_agent.cli.options import add_trust, check_writable, count, natural
from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.seeding import SPLITS

if TYPE_CHECKING:
    from vlm_agent.report.mind import Mind
    from vlm_agent.world.config import EnvConfig
    from vlm_agent.world.episode import Episode


def add_prompt(commands: Any) -> None:
    parser = commands.add_parser(
        "prompt",
        help="show what the model reads: prompt, token count, the words' tokens",
        description="Render a recipe's prompt as the model reads it at the start of an episode. "
        "Takes --config RECIPE and any --key value override.",
        add_help=True,
    )
    parser.set_defaults(run=_prompt, takes_recipe=True)


def _prompt(_: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.recipe.command_line import load_recipe

    recipe = load_recipe(rest, prog="vlm-agent prompt")

    from vlm_agent.policy.building import build_encoder

    encoder = build_encoder(recipe.model, recipe.template)
    start = {fact.name: fact.start for fact in recipe.template.facts}
    facts = tuple((start | {"words_left": recipe.env.horizon}).values())
    ids = encoder.row(recipe.template.render(facts), recipe.env.frame_shape)["input_ids"][
        0
    ].tolist()
    image_tokens = ids.count(encoder.processor.image_token_id)
    print(encoder.prompt(facts), end="\n\n")
    shared = len(encoder.prefix)
    print(f"tokens: {len(ids)}, of which {image_tokens} are the picture's")
    print(f"the first {shared} are the same in all prompts, and computed once for a batch")
    words = encoder.words
    for word, tokens, pieces in zip(words.words, words.tokens, words.pieces, strict=True):
        print(f"  {word:<16}{list(tokens)!s:<24}{list(pieces)}")
    print(words.choose_scoring(recipe.model.scoring)[1])
    return 0


def add_keys(commands: Any) -> None:
    parser = commands.add_parser(
        "keys",
        help="what may stand in a recipe: each key, its default, what it takes and is for",
        description="Show every key of a recipe, or those with a word in their names.",
    )
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="rate, lora, ...")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.md", help="write all of them as a page of Markdown"
    )
    parser.set_defaults(run=_keys, takes_recipe=False)


def _keys(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.recipe.reference import keys_page, keys_text, recipe_keys

    if arguments.output is not None:
        check_writable(arguments.output, "--output")
        arguments.output.write_text(keys_page())
        print(f"wrote {arguments.output}")
        return 0
    keys = recipe_keys()
    word = arguments.word.lstrip("-")
    found = [key for key in keys if word in key.name]
    if not found:
        raise UserError(f"keys: {unknown_name('key', word, [key.name for key in keys])}")
    print(keys_text(found, shutil.get_terminal_size().columns))
    return 0


def add_show(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="play an episode as a film or a picture",
        description="Play an episode of any file of results again from its seed and words, or have "
        "a policy play one, and write what the robot saw and said: a film (.mp4, .gif), or a .png "
        "with six moments. Settings of the scene can be changed where a policy plays: --task Lift.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--episode",
        type=Path,
        metavar="FILE",
        help="of eval --json, runs/NAME/evaluations/N.json or runs/NAME/after.json",
    )
    what.add_argument(
        "--policy", metavar="NAME", help="let this policy play; how probable each word was is shown"
    )
    what.add_argument(
        "--expert", type=natural, metavar="SEED", help="let the scripted expert play PickPlaceCan"
    )
    what.add_argument(
        "--directions",
        metavar="ROBOT",
        help="what the six directions mean, in what the hand sees and in the scene (.png)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.mp4|.gif|.png")
    parser.add_argument(
        "--number", type=natural, metavar="N", help="which episode of the file, or of the split"
    )
    outcome = parser.add_mutually_exclusive_group()
    outcome.add_argument(
        "--failed", dest="outcome", action="store_const", const="failed", help="of failures alone"
    )
    outcome.add_argument(
        "--solved", dest="outcome", action="store_const", const="solved", help="of successes alone"
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="validation", help="whose episodes a policy plays"
    )
    parser.add_argument("--seed", type=natural, default=0, help="decides these (default: 0)")
    parser.add_argument("--camera", metavar="NAME", help="beside the robot's: frontview, ...")
    parser.add_argument(
        "--size", type=count, default=336, metavar="PX", help="side of a picture (default: 336)"
    )
    parser.add_argument(
        "--fps", type=count, default=5, metavar="N", help="words per second (default: 5)"
    )
    add_trust(parser)
    parser.set_defaults(run=_show, takes_recipe=True)


def _show(arguments: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.report.directions import picture_directions
    from vlm_agent.report.video import Style, episode_strip, film_episode
    from vlm_agent.world.config import EnvConfig

    output = arguments.output
    endings = (".png",) if arguments.directions else (".mp4", ".gif", ".png")
    if output.suffix not in endings:
        raise UserError(f"--output {output}: expected a name ending in {' or '.join(endings)}")
    if not 28 <= arguments.size <= 1024 or arguments.size % 8:
        raise UserError(f"--size {arguments.size}: expected a multiple of 8 from 32 to 1024")
    if rest and arguments.policy is None:
        raise UserError(f"show: {rest[0]}: settings of the scene go with --policy alone")
    check_writable(output, "--output")
    if arguments.directions:
        picture_directions(output, EnvConfig(task="Lift", robot=arguments.directions))
        print(f"wrote {output}")
        return 0
    episode, config, words, mind = _chosen(arguments, rest)
    style = Style(arguments.size, arguments.camera, arguments.fps, mind)
    if output.suffix == ".png":
        episode_strip(episode, config, words, 6, output, style)
    else:
        film_episode(episode, config, words, output, style)
    print(f"wrote {output}: seed {episode.seed}, {'solved' if episode.success else 'not solved'}")
    return 0


def _chosen(
    arguments: argparse.Namespace, rest: list[str]
) -> tuple[Episode, EnvConfig, tuple[str, ...], Mind | None]:
    """The episode that is asked for, its scene, the words, and who judges them."""
    from vlm_agent.demonstrations.demonstrate import play_expert
    from vlm_agent.report.played import read_played
    from vlm_agent.world.config import EnvConfig

    path = arguments.episode
    if arguments.expert is not None:
        return *play_expert(arguments.expert, EnvConfig()), None
    if path is not None:
        played = read_played(path, arguments.trust_modules)
        episode = played.episodes[played.choose(arguments.number, arguments.outcome)]
        return episode, played.config, played.words, None
    return _played_now(arguments, rest)


MOST_TRIED = 100
"""Episodes that a policy plays at most until one has the outcome that is asked for."""


def _played_now(
    arguments: argparse.Namespace, rest: list[str]
) -> tuple[Episode, EnvConfig, tuple[str, ...], Mind | None]:
    """An episode that a policy plays now."""
    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.evaluation.agents import load_agent, measure
    from vlm_agent.recipe.command_line import override_env
    from vlm_agent.report.played import Played
    from vlm_agent.runs.reporting import mind_of

    disable_progress_bar()  # of loading weights
    trust = arguments.trust_modules
    agent = load_agent(arguments.policy, "none", lambda env: override_env(env, rest), trust)
    number, outcome = arguments.number or 0, arguments.outcome
    tried = number + 1 if outcome is None else min(MOST_TRIED, 4 * (number + 1))
    while True:
        result = measure(agent, tried, arguments.seed, True, arguments.split)
        played = Played(result.episodes, agent.env, result.words)
        if len(played.numbers(outcome)) > number or tried >= MOST_TRIED:
            break
        tried = min(MOST_TRIED, 4 * tried)
    chosen = played.choose(number, outcome)
    mind = mind_of(agent.policy) if agent.policy is not None else None
    return played.episodes[chosen], agent.env, result.words, mind
