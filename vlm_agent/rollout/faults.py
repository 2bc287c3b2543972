"""What an update could not learn from, written down so that it can be looked at."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode, save_episode


def write_fault(
    folder: Path,
    rollout: RolloutBuffer,
    rows: np.ndarray,
    config: EnvConfig,
    words: tuple[str, ...],
    reason: str,
) -> Path:
    """Write some words of a rollout: their observations and figures, and where they were said.

    Args:
        folder: Where to.
        rollout: The buffer.
        rows: Which of its T x N words.
        config: The scene.
        words: The words' names.
        reason: What is wrong with them.

    Returns:
        The first one's episode, for ``vlm-agent show``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps, envs = np.unravel_index(rows, rollout.actions.shape)
    chosen = rollout.observations.flatten()[rows]
    arrays = {"frames": chosen.frames, "facts": chosen.facts}
    if chosen.states is not None:
        arrays["states"] = chosen.states
    for name in ("actions", "log_probs", "values", "next_values", "rewards"):
        arrays[name] = getattr(rollout, name)[steps, envs]
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    save_file(tensors, folder / "minibatch.safetensors")
    episodes: list[Episode] = [rollout.episodes[place] for place in zip(steps, envs, strict=True)]
    about = [
        {"step": step, "environment": env, **asdict(episode)}
        for step, env, episode in zip(steps.tolist(), envs.tolist(), episodes, strict=True)
    ]
    (folder / "fault.json").write_text(json.dumps({"reason": reason, "words": about}, indent=1))
    path = folder / "episode.json"
    save_episode(path, episodes[0], config, words)
    return path
