"""``vlm-agent prompt`` and ``vlm-agent show``: what the model reads, sees and says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vlm_agent.cli.options import add_trust, check_writable, natural
from vlm_agent.common.errors import UserError


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


def add_show(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="play an episode again as a video or a picture",
        description="Play an episode again from its seed and words, and write what the robot saw "
        "and said: an .mp4 film, or a .png with six moments.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--episode", type=Path, metavar="FILE", help="an after.json of a run")
    what.add_argument(
        "--expert", type=natural, metavar="SEED", help="let the scripted expert play PickPlaceCan"
    )
    what.add_argument(
        "--directions",
        metavar="ROBOT",
        help="what the six directions mean, in what the hand sees and in the scene (.png)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.mp4|FILE.png")
    add_trust(parser)
    parser.set_defaults(run=_show, takes_recipe=False)


def _show(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.demonstrations.demonstrate import play_expert
    from vlm_agent.report.directions import picture_directions
    from vlm_agent.report.video import episode_strip, film_episode
    from vlm_agent.world.config import EnvConfig
    from vlm_agent.world.episode import load_episode, save_episode
    from vlm_agent.world.modules import check_trusted

    path, output = arguments.episode, arguments.output
    endings = (".png",) if arguments.directions else (".mp4", ".png")
    if output.suffix not in endings:
        raise UserError(f"--output {output}: expected a name ending in {' or '.join(endings)}")
    check_writable(output, "--output")
    if arguments.directions:
        picture_directions(output, EnvConfig(task="Lift", robot=arguments.directions))
        print(f"wrote {output}")
        return 0
    if path is None:
        path = output.with_suffix(".json")
        save_episode(path, *play_expert(arguments.expert, EnvConfig()))
    config = load_episode(path)[1]
    check_trusted(f"the episode {str(path)!r}", config.modules, arguments.trust_modules)
    if output.suffix == ".mp4":
        film_episode(path, output)
    else:
        episode_strip(*load_episode(path), count=6, output=output)
    print(f"wrote {output}")
    return 0
