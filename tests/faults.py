"""``make faults``: everything that can go wrong, made to happen, and what came of it.

Each row is a kind of fault and the tests that make it happen, the long ones among them. A file with
the rows is written as they are done: tests and, where a test says so, how often it tried.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from subprocess import run
from typing import Any

ROOT = Path(__file__).parents[1]

FAULTS = {
    "killed at random instants, in saves too; begun again": "tests/runs/test_kills.py",
    "a save stopped at each call of the system, a full disk": "tests/runs/test_integrity.py -k "
    "'stopped_anywhere or whole or umask'",
    "every file of a checkpoint cut, flipped, deleted, zeroed, swapped": (
        "tests/runs/test_integrity.py -k damage"
    ),
    "demonstrations damaged, or a stranger's": "tests/demonstrations/test_damage.py",
    "SIGTERM, SIGINT, twice, to one of two processes, max_hours": "tests/runs/test_stopping.py",
    "a process of two raises, is killed, hangs, is frozen": "tests/distributed/test_watch.py",
    "a process of two killed under torchrun, all of two under ZeRO-3": (
        "tests/distributed/test_runs.py -k killed"
    ),
    "a number that is not finite, scores and advantages at their extremes": (
        "tests/ppo tests/rollout tests/imitation -k 'finite or extreme'"
    ),
    "workers killed, stopped, mute": "tests/world/test_pool.py",
    "recipes that cannot be": "tests/recipe",
    "policies, prompts and templates of strangers": (
        "tests/policy/test_strangers.py tests/policy/test_prompts.py"
    ),
    "trackers that raise, block, or are not there": "tests/runs/test_tracking.py",
    "500 updates with workers killed": "tests/ppo/test_soak.py",
}


def main() -> int:
    """Make all happen, or those that are named; 0 if every test held."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", default="", help="rows with this in their names; the others stay")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if arguments.only and arguments.json and arguments.json.is_file():
        rows = {row["fault"]: row for row in json.loads(arguments.json.read_text())}
    for fault, tests in FAULTS.items():
        if arguments.only not in fault:
            continue
        rows[fault] = row = {"fault": fault, **outcome(tests)}
        print(f"{fault:<72}{row['held']:>4} of {row['tests']:<4}{row['seconds']:>6} s", flush=True)
        if arguments.json:
            known = [rows[fault] for fault in FAULTS if fault in rows]
            arguments.json.write_text(json.dumps(known, indent=1) + "\n")
    return int(any(row["held"] < row["tests"] or not row["tests"] for row in rows.values()))


def outcome(tests: str) -> dict[str, Any]:
    """Run some tests: how many there are, how many held, and what they counted."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "2", "--long", "-o", "junit_family=xunit1"]
        run([*command, f"--junit-xml={report}", *shlex.split(tests)], cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    held = [case for case in cases if case.find("failure") is None and case.find("error") is None]
    counted: Counter[str] = Counter()
    for case in held:
        for counts in case.iter("property"):
            counted[counts.attrib["name"]] += int(counts.attrib["value"])
    seconds = round(time.monotonic() - began)
    return {"tests": len(cases), "held": len(held), "seconds": seconds, "counted": dict(counted)}


if __name__ == "__main__":
    sys.exit(main())
