"""``report.html`` of runs: what they left, and episodes that their policies judge again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_agent.common.errors import UserError
from vlm_agent.policy.decisions import act
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.sections import PPOConfig
from vlm_agent.report.html.page import write_page
from vlm_agent.report.html.players import choose_episodes, episode_players
from vlm_agent.report.html.records import RunRecord
from vlm_agent.report.mind import Judgement, Mind
from vlm_agent.report.played import read_played
from vlm_agent.runs.checkpoints import STATE_FILE
from vlm_agent.world.observations import Observations


def mind_of(policy: VLMPolicy, speaks: Any = None) -> Mind:
    """A policy as a report asks it.

    Args:
        policy: The policy.
        speaks: What encodes and scores as it does, with the critic that learnt with it; without
            one, no values are told where that reads the scene's state.
    """
    tells_values = speaks is not None or policy.recipe.get("value_input", "hidden") == "hidden"

    def judge(observations: Observations) -> Judgement:
        said = act(policy if speaks is None else speaks.eval(), observations)
        return Judgement(said.probs, said.values if tells_values else None)

    return Mind(policy.words, policy.facts, policy.encoder.prompt, judge)


def policy_of_evaluation(record: RunRecord, timesteps: int) -> Path | None:
    """The folder of the policy that was evaluated after so many timesteps, if it is still there."""
    folder = record.folder.resolve().parents[1] / "checkpoints"
    own = re.compile(rf"{re.escape(record.name)}_(best|final|step\d+)")
    for path in sorted(path for path in folder.glob("*") if own.fullmatch(path.name)):
        try:
            if json.loads((path / STATE_FILE).read_text()).get("timesteps") == timesteps:
                return path
        except (OSError, ValueError):
            continue  # half a folder, or another run's
    return None


def write_report(
    folders: Sequence[Path],
    output: Path,
    minds: dict[str, Mind],
    episodes: int,
    trust_modules: bool = False,
) -> None:
    """Write the report of one run or several.

    Args:
        folders: ``runs/NAME`` of each.
        output: The HTML file.
        minds: Run -> the policy of its last evaluation.
        episodes: How many of each one's last evaluation are shown moment by moment.
        trust_modules: Whether to import the modules that their worlds name.

    Raises:
        UserError: A folder holds no run, or the file cannot be written.
    """
    records = [RunRecord.load(folder) for folder in folders]
    players: dict[str, list[dict[str, Any]]] = {}
    notes = []
    for record in records:
        if not record.evaluations or not episodes:
            notes.append(f"{record.name}: no evaluation to show episodes of.")
            continue
        if record.name not in minds:
            notes.append(f"{record.name}: the policy of its last evaluation is not there any more.")
            continue
        try:
            mind = minds[record.name]
            players[record.name], note = _players(record, mind, episodes, trust_modules)
            notes.append(note)
        except UserError as error:  # the world does not replay, or is another one now
            notes.append(f"{record.name}: {error}.")
    write_page(records, output, players, notes)


def _players(
    record: RunRecord, mind: Mind, count: int, trust_modules: bool
) -> tuple[list[dict[str, Any]], str]:
    """Some episodes of a run's last evaluation, and a sentence on which they are."""
    last = record.evaluations[-1]
    numbers = choose_episodes(last["episodes"], count)
    path = record.folder / "evaluations" / f"{last['timesteps']}.json"
    played = read_played(path, trust_modules)
    gamma = record.recipe.get("gamma", PPOConfig().gamma)
    chosen = [(n, played.episodes[n]) for n in numbers]
    with tqdm(total=len(chosen), desc="report", unit="episode", leave=False) as bar:
        players = episode_players(chosen, played.config, gamma, mind, on_episode=bar.update)
    failures = sum(not episode.success for _, episode in chosen)
    players.sort(key=lambda one: (one["success"], one["stage"]))
    return players, (
        f"{record.name}: {len(chosen)} of the {len(last['episodes'])} episodes of the evaluation "
        f"after {last['timesteps']:,} words: {failures} failures, by where they failed, and "
        f"{len(chosen) - failures} successes. They are played again from their seeds and words."
    )


def silent(mind: Mind) -> Mind:
    """The same words and prompts, with nobody to judge: the policy has learnt on since."""
    return replace(mind, judge=None)
