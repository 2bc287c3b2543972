"""The list of runs: what state each is in, and how good it became."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.short_runs import trainer_for
from vlm_agent.cli.main import main
from vlm_agent.report.listing import list_runs
from vlm_agent.runs.folders import RunFolders

HOLD = """
import sys
from pathlib import Path
from vlm_agent.common.locks import hold
hold(Path(sys.argv[1]), "taken")
print("held", flush=True)
sys.stdin.read()
"""


def test_runs_are_listed_with_their_state(recipe_for, tmp_path: Path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no runs here\n"
    for name in ("one", "two", "three"):
        trainer_for(recipe_for(run_name=name, num_eval_episodes=2, eval_freq=96)).train()
    folders = {name: RunFolders(recipe_for(run_name=name)) for name in ("one", "two", "three")}
    folders["one"].summary.write_text("{}")
    folders["three"].recipe.unlink()
    lock = str(folders["two"].run.with_name(".two.lock"))
    command = [sys.executable, "-c", HOLD, lock]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as holder:
        holder.stdout.readline()
        found = {run.name: run for run in list_runs(tmp_path)}
        holder.communicate()
    assert {name: run.state for name, run in found.items()} == {
        "one": "ended", "two": "running", "three": "damaged"
    }  # fmt: skip
    assert (found["one"].words, found["one"].total, len(found["one"].rates)) == (96, 96, 2)
    main(["runs", str(tmp_path)])
    said = capsys.readouterr().out
    assert "96 of 96" in said and "stopped" in said  # nobody is at the second one any more
