"""``vlm-agent init``: what people edit, where they want it, and nothing of theirs lost."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlm_agent.cli import main as cli
from vlm_agent.common.errors import UserError

EDITABLE = sorted(
    path.relative_to(ROOT)
    for files in ("recipes/**/*.yaml", "prompts/*.jinja", "accelerate_configs/*.yaml")
    for path in ROOT.glob(files)
)


def test_init_writes_what_people_edit_and_says_where(tmp_path: Path, capsys):
    folder = tmp_path / "new" / "place"
    assert cli.main(["init", str(folder)]) == 0
    written = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert written == EDITABLE
    for path in written:
        assert (folder / path).read_bytes() == (ROOT / path).read_bytes()
    said = capsys.readouterr().out.splitlines()
    assert sorted(said) == sorted(f"wrote {folder / path}" for path in written)


def test_init_keeps_and_names_what_is_there(tmp_path: Path, capsys):
    mine, gone = tmp_path / "recipes" / "quick.yaml", tmp_path / "prompts" / "minimal.jinja"
    for path in (mine, gone):
        path.parent.mkdir()
    mine.write_text("run_name: mine\n")
    gone.symlink_to(tmp_path / "elsewhere")  # leads nowhere: writing would make that file
    assert cli.main(["init", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    kept = [line for line in said if not line.startswith("wrote ")]
    assert kept == [f"kept {path}: it was there already" for path in (mine, gone)]
    assert mine.read_text() == "run_name: mine\n"
    assert not (tmp_path / "elsewhere").exists()
    assert len(said) == len(EDITABLE)


def test_init_says_when_it_cannot_write(tmp_path: Path):
    (tmp_path / "recipes").write_text("a file where a folder belongs")
    with pytest.raises(UserError, match=r"init /.*: cannot be written: .*recipes"):
        cli.main(["init", str(tmp_path)])
