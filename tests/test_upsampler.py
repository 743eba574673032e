"""The latent upsampler: exact sizes, bilinear when untrained, causal in time, the same in tiles."""

import pytest
import torch
from conftest import random_weights

from simplegvr_core.upsampler import VARIANTS, LatentUpsampler, UpsamplerConfig, resize, sampling_position, whole_frame

Z = torch.randn(1, 16, 5, 9, 13, generator=torch.Generator().manual_seed(0))
SMALL = UpsamplerConfig(width=16)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_starts_as_plain_bilinear(name):
    upsampler = LatentUpsampler(UpsamplerConfig(16, VARIANTS[name].expand_time, VARIANTS[name].blocks))
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


def test_a_tile_alone_equals_the_same_part_of_the_whole():
    upsampler = random_weights(LatentUpsampler(SMALL))
    z = torch.randn(1, 16, 3, 40, 44, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = upsampler(z, (80, 88))
        tile = upsampler(z[..., 8:36, 6:38], (56, 64))
    margin = 16  # target cells: 4 low-resolution cells of the blocks before, 1 of bilinear, 5 target cells of those after
    part = whole[..., 16:72, 12:76][..., margin:-margin, margin:-margin]
    torch.testing.assert_close(tile[..., margin:-margin, margin:-margin], part, atol=1e-5, rtol=0)


def test_sampling_position_is_the_same_in_every_cell_of_an_integer_ratio():
    position = sampling_position(Z, whole_frame((9, 13), (27, 39)))[0, :, 0]
    torch.testing.assert_close(position[0, :, 0], torch.tensor([-2 / 3, 0, 2 / 3]).repeat(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(position[2, 0], torch.tensor([-2 / 3, 0, 2 / 3]).repeat(13), atol=1e-5, rtol=0)
