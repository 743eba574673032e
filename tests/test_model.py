"""The DiT equals ComfyUI's WanModel; widening changes nothing; batches are independent."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ATTENTION, DIT, random_weights

from simplegvr_core.networks.attention import AttentionConfig, attend
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT, widen

FULL = AttentionConfig(kind="full", unit=None)


def inputs(channels, shape=(3, 5, 7)):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, channels, *shape, generator=generator)
    return z, torch.tensor([130.0, 870.0]), torch.randn(2, 6, 4096, generator=generator)


@pytest.mark.parametrize("config", [DiTConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2), DiTConfig(num_layers=2)])
def test_equals_comfyui_wan_model(comfy, config):
    from comfy.ldm.wan.model import WanModel

    ours = random_weights(SimpleGVRDiT(config, FULL))
    sizes = dict(dim=config.dim, ffn_dim=config.ffn_dim, num_heads=config.num_heads, num_layers=config.num_layers)
    theirs = WanModel(in_dim=32, **sizes, operations=torch.nn, dtype=torch.float32)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(*inputs(32)), theirs(*inputs(32)), atol=1e-5, rtol=0)


def test_default_sizes_are_those_of_wan_1_3b():
    with torch.device("meta"):
        shapes = {key: list(tensor.shape) for key, tensor in SimpleGVRDiT(DiTConfig(in_dim=16), FULL).state_dict().items()}
    assert len(shapes) == 825
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_418_996_800
    assert shapes["blocks.29.self_attn.norm_q.weight"] == [1536]
    assert shapes["head.head.weight"] == [64, 1536]


def test_widened_text_to_video_model_equals_the_original_exactly():
    narrow = random_weights(SimpleGVRDiT(DiTConfig(in_dim=16, dim=128, ffn_dim=160, num_heads=1, num_layers=3), ATTENTION))
    wide = SimpleGVRDiT(DIT, ATTENTION)
    wide.load_state_dict(widen(narrow.state_dict()))
    z, timestep, context = inputs(32)
    with torch.no_grad():
        assert torch.equal(wide(z, timestep, context), narrow(z[:, :16], timestep, context))


def test_condition_tokens_have_their_places_in_any_order_of_tokens():
    """Sparse attention that sees everything is full attention, condition tokens included."""
    config = DiTConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2, condition="token")
    everything = AttentionConfig(window=(1, 2, 2), top_k=100, unit=None)
    sparse, full = (random_weights(SimpleGVRDiT(config, attention)) for attention in (everything, FULL))
    with torch.no_grad():
        torch.testing.assert_close(sparse(*inputs(32)), full(*inputs(32)), atol=1e-5, rtol=0)


def test_a_batch_of_two_equals_two_runs():
    model = random_weights(SimpleGVRDiT(DIT, ATTENTION))
    z, timestep, context = inputs(32, (11, 10, 14))
    with torch.no_grad():
        together = model(z, timestep, context)
        torch.testing.assert_close(together[1:], model(z[1:], timestep[1:], context[1:]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 8, 6), (6, 3, 9)])
def test_odd_sizes_and_single_frames_keep_their_size(shape):
    model = random_weights(SimpleGVRDiT(DIT, ATTENTION))
    with torch.no_grad():
        assert model(*inputs(32, shape)).shape == (2, 16, *shape)


def test_fresh_weights_predict_the_step_from_condition_to_noise():
    model = SimpleGVRDiT(replace(DIT, dim=256, num_heads=2), ATTENTION)
    model.init_weights(torch.Generator().manual_seed(0))
    z, timestep, context = inputs(32)
    with torch.no_grad():
        error = model(z, timestep, context) - (z[:, :16] - z[:, 16:])
    assert error.square().mean() < 0.02 * 2


@pytest.mark.parametrize("attention", [ATTENTION, AttentionConfig(window=(2, 3, 4), top_k=2, unit=4)])
def test_window_major_tokens_give_what_raster_order_gives(attention):
    model = random_weights(SimpleGVRDiT(DIT, attention))
    z, timestep, context = inputs(32, (11, 10, 14))
    with torch.no_grad():
        raster = model(z, timestep, context, self_attention=partial(attend, config=attention))
        torch.testing.assert_close(model(z, timestep, context), raster, atol=1e-6, rtol=0)
