"""The latent upsampler: exact sizes, bilinear when untrained, causal in time, the same in tiles."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import random_weights

from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler, UpsamplerConfig, resize, sampling_position, tile_axes, whole_frame

Z = torch.randn(1, 16, 5, 9, 13, generator=torch.Generator().manual_seed(0))
SMALL = UpsamplerConfig(width=16)


@pytest.mark.parametrize("name", [name for name, config in VARIANTS.items() if config.resize == "latent_pixels"])
def test_every_variant_starts_as_plain_bilinear(name):
    upsampler = LatentUpsampler(replace(VARIANTS[name], width=16))
    upsampler.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(upsampler(Z, (25, 37)), resize(Z, (25, 37)))


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("size", [(9, 13), (18, 26), (25, 37), (27, 39)])
def test_size_is_exact_for_any_ratio(frames, size):
    with torch.no_grad():
        assert random_weights(LatentUpsampler(SMALL))(Z[:, :, :frames], size).shape == (1, 16, frames, *size)


def test_later_frames_never_change_earlier_ones():
    upsampler = random_weights(LatentUpsampler(SMALL))
    changed = Z.clone()
    changed[:, :, 3:] += 1
    with torch.no_grad():
        before, after = upsampler(Z, (18, 26)), upsampler(changed, (18, 26))
    torch.testing.assert_close(before[:, :, :3], after[:, :, :3], atol=1e-5, rtol=0)
    assert not torch.allclose(before[:, :, 3:], after[:, :, 3:], atol=1e-2)


def test_blocks_expand_time_to_one_frame_each():
    upsampler = random_weights(LatentUpsampler(SMALL))
    shapes = []
    upsampler.before[-1].register_forward_hook(lambda block, args, out: shapes.append(out.shape[2]))
    with torch.no_grad():
        upsampler(Z, (18, 26))
    assert shapes == [17]


@pytest.mark.parametrize("size", [(9, 13), (18, 26), (25, 37), (34, 61), (5, 7)])
def test_resize_is_pytorchs_bilinear(size):
    frames = torch.stack([F.interpolate(frame, size, mode="bilinear") for frame in Z.unbind(2)], dim=2)
    torch.testing.assert_close(resize(Z, size), frames, atol=1e-5, rtol=0)


def test_resize_is_exact_in_mixed_precision():
    with torch.autocast("cpu", torch.bfloat16):
        mixed = resize(Z, (25, 37))
    assert torch.equal(mixed, resize(Z, (25, 37)))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_tile_reads_exactly_what_its_cells_see(name):
    config = replace(VARIANTS[name], width=8)
    z = torch.randn(1, 16, 1, 30, 35, generator=torch.Generator().manual_seed(1), requires_grad=True)
    rows, columns = (tile_axes(small, large, 7, config)[5] for small, large in ((30, 85), (35, 79)))
    kept = random_weights(LatentUpsampler(config))(z, (85, 79))[..., slice(*rows.kept), slice(*columns.kept)]
    seen = torch.autograd.grad(kept.square().sum(), z)[0][0].abs().sum((0, 1)).nonzero()
    assert [rows.source, columns.source] == [
        (low, high + 1) for low, high in zip(seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True)
    ]


def test_sampling_position_is_the_same_in_every_cell_of_an_integer_ratio():
    position = sampling_position(Z, whole_frame((9, 13), (27, 39)))[0, :, 0]
    torch.testing.assert_close(position[0, :, 0], torch.tensor([-2 / 3, 0, 2 / 3]).repeat(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(position[2, 0], torch.tensor([-2 / 3, 0, 2 / 3]).repeat(13), atol=1e-5, rtol=0)
