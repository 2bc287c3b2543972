"""``vlm-agent merge``, ``seal``, ``push`` and ``space``: what is done with a saved policy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vlm_agent.cli.options import check_new
from vlm_agent.common.errors import UserError


def add_merge(commands: Any) -> None:
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

    from vlm_agent.policy.building import merge_adapter
    from vlm_agent.policy.places import policy_folder

    folder = policy_folder(arguments.policy)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error}") from None
    disable_progress_bar()  # of loading weights
    merge_adapter(folder).save_pretrained(output)
    print(f"wrote {output}")
    return 0


def add_seal(commands: Any) -> None:
    parser = commands.add_parser(
        "seal",
        help="have a policy be used as it is, after you changed a file of it",
        description="Write the manifest of a policy's folder again: what lies there is then what "
        "is expected there. Do so after you edited its prompt.jinja, say.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the policy")
    parser.set_defaults(run=_seal, takes_recipe=False)


def _seal(arguments: argparse.Namespace, _: list[str]) -> int:
    from vlm_agent.common.whole import MANIFEST, write_manifest
    from vlm_agent.policy.places import policy_folder

    folder = policy_folder(arguments.folder)
    write_manifest(folder)
    print(f"wrote {folder / MANIFEST}")
    return 0


def add_push(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="put a policy on the hub, with a card that says how good it is",
        description="Write a policy's folder without places of this machine, with a model card "
        "(task, words, prompt, recipe, evaluation with its interval, curves, film), and put it on "
        "the Hugging Face hub.",
    )
    parser.add_argument("policy", metavar="POLICY", help="its folder, checkpoints/NAME_best say")
    parser.add_argument("repository", metavar="USER/NAME", help="where to")
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="what eval --json wrote; by default what its run measured",
    )
    parser.add_argument("--license", default="apache-2.0", help="of the weights")
    parser.add_argument("--private", action="store_true", help="for you alone")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write the folder here, and push nothing"
    )
    parser.set_defaults(run=_push, takes_recipe=False)


def _push(arguments: argparse.Namespace, _: list[str]) -> int:
    import tempfile

    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.evaluation.evaluate import read_result
    from vlm_agent.sharing.publish import push, write_public

    disable_progress_bar()  # of loading weights
    output = arguments.output
    if output is not None:
        check_new(output, "--output")
    evaluation = read_result(arguments.evaluation) if arguments.evaluation else None
    what = arguments.policy, arguments.repository
    if output is not None:
        write_public(*what, output, evaluation, arguments.license)
        print(f"wrote {output}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        public = write_public(*what, Path(folder) / "policy", evaluation, arguments.license)
        print(f"pushed to {push(public, arguments.repository, arguments.private)}")
    return 0


def add_space(commands: Any) -> None:
    parser = commands.add_parser(
        "space",
        help="write a folder that is a Space of the hub: a policy, and the page to play it",
        description="Write a Space (of the kind that Docker runs): the policy, the package, and "
        "the page of vlm-agent play, for everybody. Nothing is pushed: hf upload USER/NAME FOLDER "
        "--repo-type space does that.",
    )
    parser.add_argument("policy", metavar="POLICY", help="its folder, checkpoints/NAME_best say")
    parser.add_argument("repository", metavar="USER/NAME", help="the Space's name")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--license", default="apache-2.0", help="of the weights")
    parser.set_defaults(run=_space, takes_recipe=False)


def _space(arguments: argparse.Namespace, _: list[str]) -> int:
    from transformers.utils.logging import disable_progress_bar

    from vlm_agent.sharing.space import write_space

    disable_progress_bar()  # of loading weights
    output = arguments.output
    check_new(output, "--output")
    write_space(arguments.policy, arguments.repository, output, arguments.license)
    print(f"wrote {output}: hf upload {arguments.repository} {output} --repo-type space")
    return 0
