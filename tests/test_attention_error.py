"""The error of sparse attention against dense attention, measured on networks that are small enough to know the answer."""

from dataclasses import replace

import pytest
import torch
from conftest import DIT, random_weights

from simplegvr_core.benchmark.attention_error import CANDIDATES, DENSE, AttentionError, attention_errors
from simplegvr_core.files import GVR_TINY
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import SimpleGVRDiT

pytestmark = pytest.mark.usefixtures("one_thread")


def test_dense_attention_has_no_error_and_more_windows_have_less():
    model = random_weights(SimpleGVRDiT(replace(DIT, in_dim=16), DENSE)).eval()
    z_t = torch.randn(1, 16, 7, 12, 16, generator=torch.Generator().manual_seed(0))
    windows = {
        name: AttentionConfig(window=(1, 3, 4), top_k=top_k, scope="video") for name, top_k in (("one", 1), ("nine", 9), ("all", 99))
    }
    errors = attention_errors(model, z_t, 0.5, {"dense": DENSE, **windows})
    assert errors["dense"] == {"attention": 0, "velocity": 0, "share": 1}
    for kind in ("attention", "velocity"):
        assert errors["one"][kind] > errors["nine"][kind] > 100 * errors["all"][kind]
    assert errors["one"]["share"] == pytest.approx(2 / 28) and errors["all"]["share"] == 1


def test_the_command_measures_every_candidate_with_the_bundled_model():
    results = AttentionError(num_frames=5, height=108, sigma=(0.3,)).run()
    assert results["0.3"].keys() == CANDIDATES.keys()
    assert all(0 <= row["velocity"] < 1 for row in results["0.3"].values())
    with pytest.raises(ValueError, match=r"gvr_tiny\.safetensors takes 32 channels, a text-to-video model 16"):
        AttentionError(model=GVR_TINY).run()
