"""What earlier and later versions wrote."""

import json
import math

import pytest

from vlm_agent.common.errors import UserError
from vlm_agent.rollout.curriculum import ReverseCurriculum
from vlm_agent.runs.checkpoints import load_trainer_state
from vlm_agent.runs.trackers.tracking import MetricsFile
from vlm_agent.world.episode import Episode

EPISODE = {"seed": 7, "actions": [0, 1, 2, 3], "episode_return": 0.5, "success": False}
FORMAT_1 = {
    "timesteps": 64,
    "collectors": [
        {
            "words_said": 16,
            "episodes_begun": [2],
            "running": [{**EPISODE, "stage": "none", "horizon": 9, "begun": 3}],
            "curriculum": {"words_left": 4, "recent": [True, False]},
        }
    ],
}


def test_a_state_of_format_1_is_read_as_it_is_now(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps(FORMAT_1))
    (collector,) = load_trainer_state(tmp_path)["collectors"]
    episode = Episode.from_json(collector["running"][0])
    assert episode == Episode(7, (0, 1, 2, 3), 9, prefix_length=3, episode_return=0.5)
    lessons = ReverseCurriculum([Episode(7, (0,) * 6)], 0, threshold=0.6, stride=2, patience=1.5)
    lessons.load_state_dict(collector["source"])
    assert lessons.state_dict() == {"steps_from_success": 4, "recent": [True, False]}


def test_a_state_of_a_later_format_is_refused(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"format_version": 4}))
    with pytest.raises(UserError, match="has format version 4, .* reads up to 3"):
        load_trainer_state(tmp_path)


def test_a_torn_last_line_of_the_metrics_is_none_and_what_is_not_finite_is_null(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for timesteps in (32, 64):
        metrics.write({"timesteps": timesteps, "loss": float("nan"), "words": {"up": math.inf}})
    text = metrics.path.read_text()
    assert json.loads(text.splitlines()[0]) == {
        "timesteps": 32,
        "loss": None,
        "words": {"up": None},
    }
    metrics.path.write_text(text + '{"timesteps": 96, "lo')
    metrics.keep_until(96)
    assert metrics.path.read_text() == text
    metrics.keep_until(32)
    assert metrics.path.read_text() == text.splitlines()[0] + "\n"
