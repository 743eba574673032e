"""Color safety: identities to the bit, what is taken from the reference and what stays, real drift mended, the node."""

import pytest
import torch
from conftest import REPO

from simplegvr_core.evaluation.full_reference import psnr
from simplegvr_core.latent_space import COLOR_FACTORS, PREVIEW_FACTORS
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.networks.upsampler import resize
from simplegvr_core.sampling.color_match import coarse, color_directions, low_pass, match_color, match_frame
from simplegvr_core.sampling.super_resolve import match_source
from simplegvr_core.video.frames import area_downscale, to_video
from simplegvr_core.video.read import read_video

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Latents


@pytest.mark.parametrize("shape", [(1, 16, 3, 5, 7), (2, 16, 1, 31, 18)])
@pytest.mark.parametrize("latents", COLOR_FACTORS)
def test_equal_latents_and_strength_0_change_no_bit(shape, latents):
    z = noise(*shape)
    assert torch.equal(match_color(z, z.clone(), latents, 1.0, (12, 12)), z)
    assert torch.equal(match_color(z, noise(*shape, seed=1), latents, 0.0, (12, 12)), z)


@pytest.mark.parametrize("latents", COLOR_FACTORS)
def test_each_frame_gets_the_references_mean_color(latents):
    z, reference = noise(2, 16, 3, 20, 34), 3 * noise(2, 16, 3, 20, 34, seed=1) + torch.arange(3.0).view(3, 1, 1)
    found, wanted = (mean_colors(each, latents) for each in (match_color(z, reference, latents, 1.0, width=(4, 4)), reference))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    half = mean_colors(match_color(z, reference, latents, 0.5, width=(4, 4)), latents)
    torch.testing.assert_close(half, (mean_colors(z, latents) + wanted) / 2, atol=1e-5, rtol=0)


def mean_colors(z, latents):
    """Returns each frame's mean color by each table."""
    return torch.einsum("BCT, nCc -> BTnc", z.mean((3, 4)), torch.tensor(COLOR_FACTORS[latents]))


@pytest.mark.parametrize(("latents", "colors"), [("wan", 6), ("tiny_vae", 3)])
def test_detail_stays(latents, colors):
    """Fine structure of every channel, and all of what is no color."""
    z, reference = noise(2, 16, 3, 20, 34), 3 * noise(2, 16, 3, 20, 34, seed=1)
    matched = match_color(z, reference, latents, 1.0, width=(4, 4))
    assert not torch.allclose(matched, z, atol=0.1)
    checkerboard = (-1.0) ** (torch.arange(20)[:, None] + torch.arange(34))
    kept = match_color(z + checkerboard, reference, latents, 1.0, width=(4, 4)) - matched
    torch.testing.assert_close(kept, checkerboard.expand_as(z), atol=0.02, rtol=0)
    other = torch.linalg.qr(color_directions(latents).float(), mode="complete").Q[:, colors:]
    before, after = (torch.einsum("BCTHW, Cd -> BdTHW", each, other) for each in (z, matched))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_preview_colors_are_comfyuis(comfy):
    from comfy.latent_formats import Wan21

    assert [list(rgb) for rgb in PREVIEW_FACTORS] == Wan21().latent_rgb_factors


def test_tinyvae_has_no_color_beside_the_matched_ones():
    vae = load_tiny_vae(REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors")
    color = vae.linear_decoder.weight.view(3, -1, 16).mean(1)
    directions = color_directions("tiny_vae").float()
    assert (color - color @ directions @ directions.T).norm() < 1e-3 * color.norm()


def test_frames_are_matched_one_by_one():
    z, reference = noise(2, 16, 5, 9, 13), noise(2, 16, 5, 9, 13, seed=1)
    parts = [match_color(*pair, "wan", 0.7, (12, 12)) for pair in zip(z.split(2, dim=2), reference.split(2, dim=2), strict=True)]
    torch.testing.assert_close(torch.cat(parts, dim=2), match_color(z, reference, "wan", 0.7, (12, 12)), atol=1e-6, rtol=0)


def test_the_source_is_matched_as_far_down_as_across():
    z, z_lr = torch.zeros(1, 16, 1, 80, 20), torch.zeros(1, 16, 1, 20, 20)
    z_lr[..., 10, :] = 1
    tall = match_source(z, z_lr, "wan", 1.0)[0, 0, 0, :, 0].max().item()
    both = match_source(torch.zeros(1, 16, 1, 80, 80), z_lr, "wan", 1.0)[0, 0, 0, :, 0].max().item()
    assert tall == pytest.approx(both, rel=1e-3)


def test_the_low_pass_is_a_gaussian_mirrored_at_the_edges():
    x = torch.zeros(41, 61)
    x[20, 30] = 1
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(61.0) - 30, indexing="ij")
    gaussian = torch.exp(-(rows**2 + columns**2) / (2 * 3**2)) / (2 * torch.pi * 3**2)
    torch.testing.assert_close(low_pass(x, (3, 3)), gaussian, atol=1e-6, rtol=0)
    x = noise(5, 7)
    mirrored = torch.cat((x, x.flip(0)), dim=0)
    mirrored = torch.cat((mirrored, mirrored.flip(1)), dim=1).repeat(3, 3)
    torch.testing.assert_close(low_pass(x, (2, 2)), low_pass(mirrored, (2, 2))[10:15, 14:21], atol=1e-4, rtol=0)


def test_drift_and_flicker_of_a_real_latent_are_mended():
    """As a sampler drifts: another color in each frame, and more of it towards one corner. The reference: z_lr, resized."""
    vae = load_tiny_vae(REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors")
    original = to_video(read_video(REPO / "tests" / "clips" / "held_out_12s.mp4", 9)[0][:, :192, :240])
    z, z_lr = (vae.encode(video) for video in (original, area_downscale(original, 3)))
    tint = 0.1 * noise(1, 3, 3, 1, 1)[:, :, [0] + 4 * [1] + 4 * [2]] * (1 + torch.linspace(0, 1, 192)[:, None] + torch.linspace(0, 1, 240))
    drift = vae.encode(original + tint) - z
    reference = resize(z_lr, z.shape[3:])
    mended = match_color(z + drift, reference, "tiny_vae", 1.0, (12, 12))

    def decoded(z):
        video = vae.decode(z)
        brightness = (video - original).mean((1, 3, 4)) * 127.5
        return psnr(video, original).mean(), brightness.abs().max()

    (best, steady), (before, off), (after, left) = (decoded(latent) for latent in (z, z + drift, mended))
    assert before < best - 6
    assert best - after < 0.1 * (best - before)
    assert off > 10
    assert left < max(1, 1.5 * steady)


# Pixels


def test_equal_images_and_strength_0_change_no_bit():
    image = torch.rand(37, 53, 3)
    assert torch.equal(match_frame(image, image.clone(), 1.0, 5), image)
    assert torch.equal(match_frame(image, torch.rand(37, 53, 3), 0.0, 5), image)


def test_what_is_coarse_is_the_sum_of_less_than_2_to_the_levels_pixels():
    x = torch.zeros(1, 1, 33, 49)
    x[..., 16, 24] = 1
    smooth = coarse(x, 3)[0, 0]
    assert smooth.sum().item() == pytest.approx(1)
    found = smooth.nonzero()
    assert found.amin(0).tolist() == [16 - 7, 24 - 7]
    assert found.amax(0).tolist() == [16 + 7, 24 + 7]
    torch.testing.assert_close(coarse(x, 1)[0, 0, 16, 22:27], torch.tensor([0, 1 / 8, 1 / 4, 1 / 8, 0]))
    torch.testing.assert_close(coarse(torch.full((1, 3, 2, 3), 0.3), 6), torch.full((1, 3, 2, 3), 0.3))  # smaller than the filter


@pytest.mark.parametrize("scale", [1, 3])
def test_a_real_frame_gets_its_colors_back_and_keeps_its_detail(scale):
    image = read_video(REPO / "assets" / "demo_original.mp4", 1)[0][0] / 255
    reference = area_downscale(to_video((255 * image[None]).byte()), scale)[0, :, 0].permute(1, 2, 0) / 2 + 0.5
    reference, image = 0.8 * reference, 0.8 * image  # room above: nothing is clamped
    drifted = image + torch.tensor([0.1, 0.05, 0.02]) + torch.linspace(0, 0.1, image.shape[1])[:, None]
    mended = match_frame(drifted, reference, 1.0, 5)
    before, after = ((each - image).square().mean().sqrt() for each in (drifted, mended))
    assert before > 0.1
    assert after < 0.03 * before
    assert (match_frame(drifted, reference, 0.5, 5).mean() - (mended.mean() + drifted.mean()) / 2).abs() < 1e-3


def test_values_stay_in_range():
    matched = match_frame(torch.rand(20, 30, 3), torch.ones(20, 30, 3), 1.0, 2)
    assert 0 <= matched.min() < matched.max() <= 1


# The node


def run_node(comfy, images, reference, **changes):
    return comfy.run("SimpleGVRColorMatch", images=images, reference=reference, **{"strength": 1.0, "levels": 5, **changes})[0]


def test_the_node_leaves_equal_videos_and_matches_frames_alone(comfy):
    images, reference = torch.rand(3, 37, 53, 3), torch.rand(3, 13, 18, 3)
    assert torch.equal(run_node(comfy, images, images.clone()), images)
    matched = run_node(comfy, images, reference, strength=0.7, levels=3)
    assert torch.equal(matched[1], match_frame(images[1], reference[1], 0.7, 3))
    assert not torch.equal(matched, images)


def test_the_node_takes_an_alpha_channel(comfy):
    images, reference = torch.rand(2, 20, 30, 4), torch.rand(2, 20, 30, 4)
    matched = run_node(comfy, images, reference)
    assert torch.equal(matched[..., 3], images[..., 3])
    assert torch.equal(matched[..., :3], run_node(comfy, images[..., :3], reference[..., :3]))


@pytest.mark.parametrize("frames", [2, 4])
def test_another_number_of_frames_is_named(comfy, frames):
    with pytest.raises(ValueError, match=rf"SimpleGVR Color Match: images has 3 frames and reference {frames}, wanted as many"):
        run_node(comfy, torch.rand(3, 20, 30, 3), torch.rand(frames, 20, 30, 3))
