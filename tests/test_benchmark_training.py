"""benchmark training: what one, two and four processes read and compute."""

import json

import pytest

from simplegvr_core.benchmark.training import TrainingBenchmark


@pytest.mark.slow
def test_processes_read_their_own_share_and_have_the_losses_of_one(tmp_path):
    result = TrainingBenchmark(steps=6, seconds=0.02, out=tmp_path / "training.json").run()
    assert json.loads((tmp_path / "training.json").read_text())["own_share"] == 1
    assert result["own_share"] == 1
    assert result["loss_difference"] < 1e-6
    assert result["runs"]["before 4"]["own_share"] == 4


def test_sizes_that_four_processes_cannot_share_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--batch is 6"):
        TrainingBenchmark(batch=6, out=tmp_path / "training.json").run()
