"""The upsampler on the grid of pixels: its resize is PyTorch's, and untrained it is the autoencoder's closed form by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import random_weights
from torch import Tensor

from simplegvr_core.files import GVR_TINY_UPSAMPLER, GVR_TINY_VAE
from simplegvr_core.networks.layers import multiplies_bfloat16
from simplegvr_core.networks.pixel_grid import add_taps_in_one_pass, add_taps_one_by_one, cubic_taps, resize_pixels
from simplegvr_core.networks.tiny_vae import TinyVAE, TinyVAEConfig, load_tiny_vae
from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler, UpsamplerConfig, load_upsampler, whole_frame
from simplegvr_core.video.frames import resize_frames

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = replace(VARIANTS["pixels"], width=24, blocks=2)


def closed_form(vae: TinyVAE, z: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the encoding of the resized linearly decoded video. z: (1, 16, 1, h, w), whose four frames are not one repeated."""
    blocks = vae.linear_decoder(z)[:, :, 0]
    pixels = F.interpolate(F.pixel_shuffle(blocks, 8), (8 * size[0], 8 * size[1]), mode="bicubic", align_corners=False)
    return vae.encoder(F.pixel_unshuffle(pixels, 8)[:, :, None])


def untrained(vae: TinyVAE) -> LatentUpsampler:
    upsampler = LatentUpsampler(SMALL)
    upsampler.init_weights(torch.Generator().manual_seed(0))
    assert upsampler.grid
    upsampler.grid.copy_closed_form(vae)
    return upsampler


@pytest.mark.parametrize("size", [(3, 5), (7, 11), (12, 20), (2, 3)])
def test_resize_of_pixels_is_pytorchs_bicubic(size):
    pixels = torch.randn(2, 12, 24, 40, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(pixels, (8 * size[0], 8 * size[1]), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resize_pixels(pixels, whole_frame((3, 5), size)), expected, atol=1e-4, rtol=0)


def test_taps_in_one_pass_are_the_taps_one_by_one():
    """Errors against float64 of both, and gradients, at 24 lines to 56."""
    lines = torch.randn(24, 33, generator=torch.Generator().manual_seed(0)).requires_grad_()
    index, weight = cubic_taps(whole_frame((3, 5), (7, 11))[0])
    exact = add_taps_one_by_one(lines.double(), index, weight.double())
    one_pass, one_by_one = add_taps_in_one_pass(lines, index, weight), add_taps_one_by_one(lines, index, weight)
    assert (one_pass - exact).abs().max() <= 2 * (one_by_one - exact).abs().max()
    gradients = [torch.autograd.grad(out.square().sum(), lines)[0] for out in (one_pass, one_by_one)]
    torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU has no products of bfloat16")
@torch.no_grad()
def test_fast_blocks_change_the_latent_by_the_precision_of_bfloat16_and_stream_alike():
    upsampler = load_upsampler(GVR_TINY_UPSAMPLER)
    assert isinstance(upsampler, LatentUpsampler) and not upsampler.fast
    z = load_tiny_vae(GVR_TINY_VAE).encode(torch.rand(1, 3, 13, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    exact = upsampler(z, (11, 17))
    upsampler.fast = True
    fast = upsampler(z, (11, 17))
    assert 0 < (fast - exact).square().mean().sqrt() < 0.01 * exact.std()
    streamed = torch.cat(list(upsampler.stream(z.split(2, dim=2), (11, 17), tile=(6, 9))), dim=2)
    assert (streamed - fast).square().mean().sqrt() < 0.01 * exact.std()


@pytest.mark.parametrize("size", [(3, 5), (7, 11), (9, 15)])
@torch.no_grad()
def test_untrained_it_is_the_closed_form(size):
    vae, z = random_weights(TinyVAE(TinyVAEConfig()), seed=1), torch.randn(1, 16, 3, 3, 5, generator=torch.Generator().manual_seed(2))
    expected = torch.cat([closed_form(vae, frame, size) for frame in z.split(1, dim=2)], dim=2)
    torch.testing.assert_close(untrained(vae)(z, size), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_untrained_it_beats_bilinear_latents_on_gvr_tinys_latents():
    """A slanted edge, whose resized picture is known."""
    vae = load_tiny_vae(GVR_TINY_VAE)
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(160.0), indexing="ij")
    edge = torch.tanh((columns - 0.7 * rows - 40) / 6).expand(1, 3, 5, -1, -1)
    z_lr, z_hr = vae.encode(resize_frames(edge, (32, 56), "area")), vae.encode(edge)
    bilinear = LatentUpsampler(VARIANTS["bilinear"])(z_lr, (12, 20))
    assert (untrained(vae)(z_lr, (12, 20)) - z_hr).abs().mean() < 0.5 * (bilinear - z_hr).abs().mean()


def test_the_closed_form_is_not_trained():
    trained = {name for name, parameter in LatentUpsampler(SMALL).named_parameters() if parameter.requires_grad}
    assert {"grid.add.weight", "grid.read.weight"} <= trained and not trained & {"grid.decoder", "grid.mean", "grid.encoder", "grid.offset"}


def test_mixed_precision_does_not_reach_the_closed_form():
    vae, z = random_weights(TinyVAE(TinyVAEConfig()), seed=1), torch.randn(1, 16, 2, 3, 5, generator=torch.Generator().manual_seed(2))
    upsampler = untrained(vae)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = upsampler(z, (7, 11))
    with torch.no_grad():
        assert torch.equal(mixed.float(), upsampler(z, (7, 11)))


@pytest.mark.parametrize("change", [{"latents": "wan"}, {"expand_time": True}, {"blocks": 0}])
def test_settings_that_exclude_it_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        UpsamplerConfig(**vars(replace(SMALL)) | change)
