"""A run's picture of curves has a panel for what there is, and none for what there is not."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from vlm_agent.report.curves import plot_curves

UPDATE = {
    "timesteps": 64, "episode_return": 1.5, "success_rate": 0.5, "reached_rate": 0.7,
    "episode_length": 30.0, "entropy": 1.2, "policy_loss": 0.1, "value_loss": 0.2,
    "approx_kl": 0.01, "clip_fraction": 0.1, "explained_variance": 0.4, "words": {"up": 0.5},
}  # fmt: skip
WARM_START = [
    {"timesteps": 64, "stage": "demonstrations", "loss": 0.9, "accuracy": 0.6},
    {
        "timesteps": 128, "stage": "DAgger round 1: the student speaks", "agreement": 0.5,
        "episode_return": 1.0, "episode_length": 50.0, "success_rate": 0.2, "reached_rate": 0.6,
    },
    {"timesteps": 192, "stage": "DAgger round 1", "loss": 0.7, "accuracy": 0.7},
    {"timesteps": 192, "stage": "value head", "explained_variance": 0.6},
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def curves(updates: list[dict], folder: Path, drawn: list[Figure]) -> dict[str, list[str]]:
    """Title -> the names of the lines, of panels that are not left empty."""
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(update) + "\n" for update in updates))
    plot_curves(path, [], folder / "curves.png")
    panels = [axes for axes in drawn[-1].axes if axes.axison]
    assert all(axes.lines for axes in panels)
    return {axes.get_title(): [line.get_label() for line in axes.lines] for axes in panels}


def test_a_warm_start_shows_loss_and_accuracy(tmp_path: Path, drawn: list[Figure]):
    found = curves(WARM_START, tmp_path, drawn)
    assert found == {
        "episode return": ["episode_return"],
        "rates": ["success_rate", "reached_rate"],
        "episode length (words)": ["episode_length"],
        "explained variance": ["explained_variance"],
        "imitation loss (nats)": ["loss"],
        "share of the expert's words that are said": ["accuracy", "agreement"],
    }
    (accuracy, _) = drawn[-1].axes[5].lines
    assert accuracy.get_xydata().tolist() == [[64, 0.6], [192, 0.7]]


def test_ppo_shows_what_an_update_measures(tmp_path: Path, drawn: list[Figure]):
    found = curves([UPDATE, {**UPDATE, "timesteps": 128}], tmp_path, drawn)
    assert len(found) == 8
    assert found["rates"] == ["success_rate", "reached_rate"]
    assert found["shares of the most said words"] == ["up"]
    assert "imitation loss (nats)" not in found
