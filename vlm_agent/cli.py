"""The ``vlm-agent`` command: evaluate, look at prompts and episodes, check the machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm_agent import __version__
from vlm_agent.entry import run_command
from vlm_agent.errors import UserError
from vlm_agent.seeding import SPLITS

EPILOG = """
train:  accelerate launch --config_file accelerate_configs/cpu.yaml \\
            -m vlm_agent.train --config recipes/quick.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand."""
    parser = argparse.ArgumentParser(
        prog="vlm-agent",
        description="A vision-language model that moves a robot arm with words.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_demos,
        _add_eval,
        _add_compare,
        _add_merge,
        _add_prompt,
        _add_show,
        _add_bench,
        _add_results,
        _add_doctor,
    ):
        add(commands)
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.takes_recipe:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run: Callable[[argparse.Namespace, list[str]], int] = arguments.run
    return run(arguments, rest)


def run() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(main))


def _add_demos(commands: Any) -> None:
    parser = commands.add_parser(
        "demos",
        help="let the scripted expert demonstrate a task",
        description="Let the scripted expert play a recipe's demonstrations, in parallel, and "
        "store them as a Hugging Face dataset. Goes on where it was stopped. "
        "Takes --config RECIPE and any --key value override.",
    )
    parser.set_defaults(run=_demos, takes_recipe=True)


def _demos(_: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.recipes import load_recipe

    recipe = load_recipe(rest, prog="vlm-agent demos")

    from vlm_agent.learning.demonstrations import collect_demonstrations

    print(f"wrote {collect_demonstrations(recipe)}")
    return 0


POLICY_HELP = "a policy's folder, its name on the hub, or one of: starter, oracle, random"


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="measure a policy on fixed episodes",
        description="Play episodes with a policy and report success with its 95 % Wilson "
        "interval. The same call gives the same numbers. Settings of the scene can be changed: "
        "--controller_hz 500, --task Lift, ...",
    )
    parser.add_argument("--policy", required=True, metavar="NAME", help=POLICY_HELP)
    _add_episode_options(parser)
    parser.add_argument(
        "--ablate",
        choices=("none", "image", "prompt"),
        default="none",
        help="what the policy is not told: a grey image, or always the facts of the beginning",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.set_defaults(run=_eval, takes_recipe=True)


def _add_episode_options(parser: argparse.ArgumentParser) -> None:
    """Which episodes are played, and how."""
    parser.add_argument("--num_eval_episodes", type=_count, default=10, metavar="N")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="validation",
        help="whose episodes; a policy is chosen by validation and measured by test episodes "
        "(default: validation)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the episodes (default: 0)")
    parser.add_argument(
        "--greedy",
        type=_boolean,
        default=True,
        metavar="true|false",
        help="take the most probable word, else sample (default: true)",
    )
    parser.add_argument("--num_envs", type=_count, default=4, help="played at once (default: 4)")


def _eval(arguments: argparse.Namespace, rest: list[str]) -> int:
    _check_writable(arguments.json)
    result = _measure(arguments.policy, arguments, rest, arguments.ablate)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    for key, value in result.items():
        if key != "episodes":
            print(f"{key:<20}{value:.3f}" if isinstance(value, float) else f"{key:<20}{value}")
    return 0


def _measure(
    name: str, arguments: argparse.Namespace, rest: list[str], ablate: str = "none"
) -> dict[str, Any]:
    """What a policy reaches on the episodes that the command line asks for."""
    import dataclasses

    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.learning.players import load_player, measure
    from vlm_agent.recipes import override_env

    disable_progress_bar()  # of loading weights
    player = load_player(name, ablate)  # type: ignore[arg-type]
    player = dataclasses.replace(player, env=override_env(player.env, rest))
    count = arguments.num_eval_episodes
    with tqdm(total=count, desc=f"evaluating {name}", unit="episode") as bar:
        return measure(
            player,
            count,
            arguments.seed,
            arguments.greedy,
            arguments.split,
            arguments.num_envs,
            bar.update,
        )


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare policies on the same episodes",
        description="Play the same episodes with each policy and compare each with the first, by "
        "McNemar's exact test. A file that eval --json wrote is taken as it is.",
    )
    parser.add_argument("policies", nargs="+", metavar="NAME|FILE.json", help=POLICY_HELP)
    _add_episode_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.set_defaults(run=_compare, takes_recipe=True)


def _compare(arguments: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.learning.comparison import compare, comparison_table
    from vlm_agent.learning.evaluation import read_result

    _check_writable(arguments.json)
    results = [
        read_result(Path(name)) if name.endswith(".json") else _measure(name, arguments, rest)
        for name in arguments.policies
    ]
    rows = compare(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(comparison_table(rows))
    return 0


def _add_merge(commands: Any) -> None:
    parser = commands.add_parser(
        "merge",
        help="add a LoRA policy's adapter to its backbone, for deployment",
        description="Write a policy without adapters that scores as the LoRA policy does, up to "
        "the rounding of its dtype. Of a 4-bit or 8-bit policy, the backbone is taken as it was "
        "before quantisation.",
    )
    parser.add_argument("--policy", required=True, metavar="FOLDER", help="a LoRA policy's folder")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.set_defaults(run=_merge, takes_recipe=False)


def _merge(arguments: argparse.Namespace, _: list[str]) -> int:
    output = arguments.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: is there already; name a new folder")

    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.policy.artifact import policy_folder
    from vlm_agent.policy.building import merge_adapter

    folder = policy_folder(arguments.policy)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error}") from None
    disable_progress_bar()  # of loading weights
    merge_adapter(folder).save_pretrained(output)
    print(f"wrote {output}")
    return 0


def _add_prompt(commands: Any) -> None:
    parser = commands.add_parser(
        "prompt",
        help="show what the model reads: prompt, token count, the words' tokens",
        description="Render a recipe's prompt as the model reads it at the start of an episode. "
        "Takes --config RECIPE and any --key value override.",
        add_help=True,
    )
    parser.set_defaults(run=_prompt, takes_recipe=True)


def _prompt(_: argparse.Namespace, rest: list[str]) -> int:
    from vlm_agent.recipes import load_recipe

    recipe = load_recipe(rest, prog="vlm-agent prompt")

    import numpy as np

    from vlm_agent.policy.building import build_encoder
    from vlm_agent.policy.encoding import START_FACTS

    encoder = build_encoder(recipe.model, recipe.template)
    facts = (*START_FACTS[:-1], recipe.env.horizon)
    frame = np.zeros((recipe.env.frame_size, recipe.env.frame_size, 3), np.uint8)
    ids = encoder.row(facts, frame)["input_ids"][0].tolist()
    image_tokens = ids.count(encoder.processor.image_token_id)
    print(encoder.prompt(facts), end="\n\n")
    print(f"tokens: {len(ids)}, of which {image_tokens} are the picture's")
    words = encoder.words
    for word, tokens, pieces in zip(words.words, words.tokens, words.pieces, strict=True):
        print(f"  {word:<16}{list(tokens)!s:<24}{list(pieces)}")
    print(words.choose_scoring(recipe.model.scoring)[1])
    return 0


def _add_show(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="play an episode again as a video or a picture",
        description="Play an episode again from its seed and words, and write what the robot saw "
        "and said: an .mp4 film, or a .png with six moments.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--episode", type=Path, metavar="FILE", help="an after.json of a run")
    what.add_argument(
        "--oracle", type=int, metavar="SEED", help="let the scripted expert play PickPlaceCan"
    )
    what.add_argument(
        "--directions",
        metavar="ROBOT",
        help="what the six directions mean, in what the hand sees and in the scene (.png)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.mp4|FILE.png")
    parser.set_defaults(run=_show, takes_recipe=False)


def _show(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.report.directions import picture_directions
    from vlm_agent.report.video import episode_strip, film_episode
    from vlm_agent.robot.config import EnvConfig
    from vlm_agent.robot.episode import load_episode, save_episode
    from vlm_agent.robot.oracle import play_oracle

    path, output = arguments.episode, arguments.output
    endings = (".png",) if arguments.directions else (".mp4", ".png")
    if output.suffix not in endings:
        raise UserError(f"--output {output}: expected a name ending in {' or '.join(endings)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.directions:
        picture_directions(output, EnvConfig(task="Lift", robot=arguments.directions))
        print(f"wrote {output}")
        return 0
    if path is None:
        path = output.with_suffix(".json")
        save_episode(path, *play_oracle(arguments.oracle))
    if output.suffix == ".mp4":
        film_episode(path, output)
    else:
        episode_strip(*load_episode(path), count=6, output=output)
    print(f"wrote {output}")
    return 0


def _add_bench(commands: Any) -> None:
    from vlm_agent.bench.command import add_arguments

    parser = commands.add_parser(
        "bench",
        help="measure how fast the robot's world and the policy are",
        description="Each benchmark runs two things side by side and reports their ratio.",
    )
    add_arguments(parser)
    parser.set_defaults(run=_bench, takes_recipe=False)


def _bench(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.bench.command import run

    _check_writable(arguments.json)
    run(arguments)
    return 0


def _check_writable(path: Path | None) -> None:
    """Find out now whether the result can be written, not when it is there."""
    if path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise UserError(f"--json {path}: cannot be written: {error}") from None


def _add_results(commands: Any) -> None:
    parser = commands.add_parser(
        "results",
        help="from nothing to the README's table of results",
        description="Run every stage of the study that has not been run (demonstrations, warm "
        "starts, PPO, test evaluations), then write the JSON file, the table and the curves.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=Path("recipes/results/results.json"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--curves", type=Path, default=Path(".github/learning.png"))
    parser.add_argument(
        "--present", action="store_true", help="run nothing, write what has been evaluated so far"
    )
    parser.set_defaults(run=_results, takes_recipe=False)


def _results(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.bench.results import Study, run_study, write_results
    from vlm_agent.report.results import plot_learning_curves, write_readme

    _check_writable(arguments.json)
    if arguments.present:
        write_results(Study(arguments.output_dir), arguments.json)
    else:
        run_study(arguments.output_dir, arguments.json)
    results = json.loads(arguments.json.read_text())
    write_readme(results, arguments.readme)
    plot_learning_curves(results, arguments.curves)
    print(f"wrote {arguments.json}, {arguments.readme}, {arguments.curves}")
    return 0


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check that this machine can render",
        description="Render a picture in a child process with each backend that needs no display "
        "(EGL, OSMesa); say which is used, and what is missing if it does not work.",
    )
    parser.add_argument(
        "--install", action="store_true", help="install what is missing, if run as root"
    )
    parser.set_defaults(run=_doctor, takes_recipe=False)


def _doctor(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.robot import rendering

    findings = rendering.examine()
    if rendering.advice(findings) and arguments.install and rendering.can_install():
        print(f"{findings[0]}; installing the system's libraries")
        rendering.install_system_packages()
        findings = rendering.examine()
    print(*findings, sep="\n")
    if advice := rendering.advice(findings):
        raise UserError(f"cannot render with {findings[0].backend}: {advice}")
    print(f"rendering works; frames are drawn with {findings[0].backend}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


if __name__ == "__main__":
    run()
