"""Nothing of a stranger's folder is run, whatever it says, and nothing hangs."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_agent import VLMPolicy
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.common.whole import write_manifest
from vlm_agent.policy.backbone.loading import find_model_type
from vlm_agent.policy.strangers import check_harmless

CODE = "import pathlib; pathlib.Path({canary!r}).touch()\nclass Stranger: pass\n"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else {}


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "auto_map of a processor": (
        lambda f: change(f / "processor_config.json", auto_map={"AutoProcessor": "code.Stranger"}),
        "auto_map names code",
    ),
    "auto_map of a tokenizer": (
        lambda f: change(
            f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Stranger", None]}
        ),
        "auto_map names code",
    ),
    "auto_map inside": (
        lambda f: change(
            f / "processor_config.json",
            image_processor={"auto_map": {"AutoImageProcessor": "code.Stranger"}},
        ),
        "auto_map names code",
    ),
    "megatron": (
        lambda f: change(f / "adapter_config.json", megatron_config={}, megatron_core="megatron"),
        "megatron_core names code",
    ),
    "megatron's settings": (
        lambda f: change(f / "adapter_config.json", megatron_config={"a": 1}),
        "megatron_config names code",
    ),
    "a kernel from the hub": (
        lambda f: change(f / "adapter_config.json", attn_implementation="stranger/kernel"),
        "attn_implementation: 'stranger/kernel' names code",
    ),
    "a link to elsewhere": (
        lambda f: ((f / "prompt.jinja").unlink(), (f / "prompt.jinja").symlink_to("/etc/passwd")),
        "prompt.jinja is a link",
    ),
    "a pipe": (
        lambda f: ((f / "recipe.json").unlink(), os.mkfifo(f / "recipe.json")),
        "recipe.json is no plain file",
    ),
    "a large file": (
        lambda f: os.truncate(f / "prompt.jinja", 2**30),
        "prompt.jinja has 1073741824 bytes",
    ),
    "deep values": (
        lambda f: change(f / "recipe.json", deep=nested(40)),
        "more than 32 deep",
    ),
    "values too deep to read": (
        lambda f: (f / "recipe.json").write_text("[" * 10**5 + "]" * 10**5),
        "is no JSON",
    ),
    "no JSON": (lambda f: (f / "policy.json").write_text("{"), "policy.json is no JSON"),
    "no text": (lambda f: (f / "policy.json").write_bytes(b"\xff\xfe"), "policy.json is no JSON"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_strangers_folder_runs_nothing(attack: str, make_policy, tmp_path, monkeypatch):
    folder, canary = tmp_path / "stranger", tmp_path / "canary"
    make_policy(use_peft=True).save_pretrained(folder)
    VLMPolicy.from_pretrained(folder)  # else anything would do
    code = CODE.format(canary=str(canary))
    (folder / "code.py").write_text(code)
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "__init__.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    change_it, said = ATTACKS[attack]
    change_it(folder)
    if attack != "a pipe":
        write_manifest(folder)  # a stranger's is in order
    with pytest.raises(UserError, match=said):
        VLMPolicy.from_pretrained(folder)
    assert not canary.exists()
    assert "megatron" not in sys.modules


def test_a_strangers_model_runs_nothing(policy, tmp_path):
    folder = tmp_path / "model"
    policy.backbone.save_pretrained(folder)
    assert find_model_type(str(folder)) == "qwen2_vl"
    change(folder / "config.json", auto_map={"AutoConfig": "code.Stranger"}, model_type="stranger")
    (folder / "code.py").write_text(CODE.format(canary=str(tmp_path / "canary")))
    with pytest.raises(UserError, match=r"config.json: auto_map names code"):
        find_model_type(str(folder))
    assert not (tmp_path / "canary").exists()


def test_a_policy_in_the_hubs_cache_is_links(policy, tmp_path, monkeypatch):
    """To the blobs of its repository; the cache itself may be a link."""
    real = tmp_path / "disk"
    snapshot = real / "models--a--b" / "snapshots" / "main"
    (real / "models--a--b" / "blobs").mkdir(parents=True)
    policy.save_pretrained(tmp_path / "policy")
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "policy").iterdir():
        shutil.copy(path, real / "models--a--b" / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (tmp_path / "cache").symlink_to(real)
    folder = tmp_path / "cache" / "models--a--b" / "snapshots" / "main"
    assert VLMPolicy.from_pretrained(folder).words == policy.words


def test_a_file_that_was_changed_by_hand_is_used_when_its_owner_says_so(policy, tmp_path):
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    prompt = folder / "prompt.jinja"
    prompt.write_text("Look: " + prompt.read_text())
    with pytest.raises(UserError, match=f"vlm-agent seal {folder}"):
        VLMPolicy.from_pretrained(folder)
    assert main(["seal", str(folder)]) == 0
    assert VLMPolicy.from_pretrained(folder).encoder.template.source.startswith("Look: ")
    (folder / "train.log").write_text("notes")  # nobody reads it
    VLMPolicy.from_pretrained(folder)


def test_files_that_nobody_opens_may_be_anything(policy, tmp_path):
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    (folder / "notes.pdf").symlink_to("/etc/passwd")
    (folder / "films").mkdir()
    check_harmless(folder)
