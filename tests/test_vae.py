"""TinyVAE: shapes of Wan 2.1, causal in time, closed-form start, latents whose previews show true colors."""

import pytest
import torch
from conftest import REPO, random_weights

from simplegvr_core.latent_space import PREVIEW_FACTORS
from simplegvr_core.networks.checkpoint import read_config
from simplegvr_core.networks.layers import multiplies_bfloat16
from simplegvr_core.networks.tiny_vae import TinyVAE, TinyVAEConfig, load_tiny_vae, to_blocks
from simplegvr_core.video.frames import resize_frames, to_images, to_video
from simplegvr_core.video.read import read_video

SMALL = TinyVAEConfig(latent_width=16, latent_blocks=1, fine_width=16, fine_blocks=1, pixel_width=8)


@pytest.fixture(scope="module")
def video():
    return to_video(read_video(REPO / "assets" / "demo_original.mp4", 17)[0])[..., :160, :200]


@pytest.fixture(scope="module")
def fitted(video):
    vae = TinyVAE(SMALL)
    vae.init_weights(torch.Generator().manual_seed(0))
    vae.fit_encoder(video)
    return vae.eval().requires_grad_(False)


@pytest.mark.parametrize("frames, height, width", [(1, 8, 16), (17, 24, 40), (6, 13, 21)])
def test_sizes_are_those_of_wan(fitted, video, frames, height, width):
    z = fitted.encode(video[:, :, :frames, :height, :width])
    latent_frames = -(-(frames - 1) // 4) + 1
    assert z.shape == (1, 16, latent_frames, -(-height // 8), -(-width // 8))
    assert fitted.decode(z).shape == (1, 3, 4 * latent_frames - 3, 8 * z.shape[3], 8 * z.shape[4])


def test_fresh_decoder_is_the_linear_one(fitted, video):
    z = fitted.encode(video)
    torch.testing.assert_close(fitted.decode(z), fitted.linear_decode(z))


def test_fitted_latents_are_half_white(fitted, video):
    """Their covariance has the square roots of the blocks' 16 largest variances, scaled to a mean of 1."""
    z = fitted.encode(video).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    blocks = to_blocks(video).transpose(0, 1).flatten(1)
    expected = torch.linalg.eigvalsh(torch.cov(blocks.double()))[-16:].sqrt()
    torch.testing.assert_close(torch.linalg.eigvalsh(torch.cov(z)).double(), expected / expected.mean(), atol=1e-2, rtol=1e-2)


def test_linear_decoder_projects_blocks_on_their_principal_components(fitted, video):
    blocks = to_blocks(video).transpose(0, 1).flatten(1)
    once = to_blocks(fitted.linear_decode(fitted.encode(video))).transpose(0, 1).flatten(1)
    spectrum = torch.linalg.eigvalsh(torch.cov(blocks.double()))
    lost = (blocks - once)[:, 200:].square().sum(0).mean()  # the first latent frame keeps one of its four equal frames
    assert lost < 1.1 * spectrum[:-16].sum()


def test_later_frames_never_change_earlier_ones(video):
    vae = random_weights(TinyVAE(SMALL))
    changed = video.clone()
    changed[:, :, 9:] *= -1
    with torch.no_grad():
        before, after = vae.encode(video), vae.encode(changed)
        assert torch.equal(before[:, :, :3], after[:, :, :3])
        torch.testing.assert_close(vae.decode(before)[:, :, :9], vae.decode(after)[:, :, :9], atol=1e-5, rtol=0)


def test_bundled_latents_have_unit_scale_and_previews_of_true_colors(video):
    vae = load_tiny_vae(REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors")
    z = vae.encode(video)
    assert 0.5 < z.std() < 1.5
    preview = torch.einsum("BCTHW, Cc -> BcTHW", z, torch.tensor(PREVIEW_FACTORS))
    shown = resize_frames(video[:, :, ::4], z.shape[3:], "area")
    for channel in range(3):
        pair = torch.stack((preview[:, channel].flatten(), shown[:, channel].flatten()))
        assert torch.corrcoef(pair)[0, 1] > 0.8


def test_its_own_preview_colors_are_those_of_the_video(video):
    vae = load_tiny_vae(REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors")
    colors, z = vae.preview_colors(), vae.encode(video)
    preview = torch.einsum("BCTHW, Cc -> BcTHW", z, torch.tensor(colors.factors)) + torch.tensor(colors.bias).view(3, 1, 1, 1)
    shown = resize_frames(video[:, :, ::4], z.shape[3:], "area")
    assert (preview - shown).abs().mean() < 0.5 * (shown - shown.mean((2, 3, 4), keepdim=True)).abs().mean()
    config = read_config(REPO / "models" / "diffusion_models" / "gvr_tiny.safetensors", "dit")
    torch.testing.assert_close(torch.tensor(config["preview"]["factors"]), torch.tensor(colors.factors))


@pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU has no products of bfloat16")
def test_fast_decoding_changes_pixels_by_a_level_and_streams_alike(video):
    vae = load_tiny_vae(REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors")
    z = vae.encode(video)
    exact = to_images(vae.decode(z)).int()
    vae.fast = True
    fast = vae.decode(z)
    assert 0 < (to_images(fast).int() - exact).abs().max() <= 1
    assert (to_images(fast).int() != exact).float().mean() < 0.1
    streamed = torch.cat(list(vae.decode_stream(z.split(2, dim=2))), dim=2)
    assert (to_images(streamed).int() - to_images(fast).int()).abs().max() <= 1


def test_exact_decoding_is_the_default(fitted):
    assert not fitted.fast and not load_tiny_vae(REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors").fast
