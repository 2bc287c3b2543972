"""What ``make gpu`` measures, on the CPU with a small model: all of it but a GPU's speed."""

import pytest

from vlm_agent.bench.models import ARCHITECTURES
from vlm_agent.plan.gpu import FORMS, measure_gpu
from vlm_agent.policy.backbone.tiny import TEXT_SIZES, VISION_SIZES


@pytest.mark.long
def test_each_form_is_measured_beside_its_plan(monkeypatch):
    deeper = TEXT_SIZES | {"num_hidden_layers": 9}
    monkeypatch.setitem(ARCHITECTURES, "deeper", (deeper, VISION_SIZES))
    found = measure_gpu("deeper", "cpu", steps=1, vocabulary=1024, frame_size=56, n_epochs=1)
    for form in FORMS:
        for figure in ("decisions_per_s", "update_samples_per_s", "words_per_s"):
            assert found[f"{form}_{figure}"] > 0 < found[f"{form}_{figure}_planned"]
        assert found[f"{form}_share_of_matrix_rate"] > 0
        assert found[f"{form}_first_ratio_error"] < 1e-4
