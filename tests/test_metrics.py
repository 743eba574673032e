"""Metrics have known answers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from simplegvr_core import metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Returns a smooth random picture (3, height, width) in [-1, 1]."""
    noise = np.random.default_rng(seed).standard_normal((3, height, width))
    smooth = gaussian_filter(noise, (0, 3, 3), mode="wrap")
    return torch.from_numpy(smooth / np.abs(smooth).max()).float()


def panning(picture: torch.Tensor, frames: int, dy: int, dx: int, height: int = 72, width: int = 104) -> torch.Tensor:
    """Returns the video (1, 3, frames, height, width) of a window that moves over picture by dy, dx pixels a frame."""
    views = [picture[:, 20 + dy * t : 20 + dy * t + height, 20 + dx * t : 20 + dx * t + width] for t in range(frames)]
    return torch.stack(views, dim=1)[None]


def blurred(video: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(video.numpy(), (0, 0, 0, sigma, sigma)))


@pytest.fixture(scope="module")
def video():
    return panning(texture(140, 160), 3, 2, -3)


def test_psnr_of_a_constant_error_of_one_level_is_48_db():
    original = torch.zeros(1, 3, 2, 16, 16)
    assert metrics.psnr(original + 2 / 255, original) == pytest.approx(48.13, abs=0.01)


def test_ssim_of_equal_videos_is_one_and_falls_with_noise():
    original = torch.rand(1, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert metrics.ssim(original, original) == pytest.approx(1, abs=1e-5)
    assert metrics.ssim(original + 0.3 * torch.randn_like(original), original) < 0.95


@pytest.mark.parametrize("metric", [metrics.ssim, metrics.st_lpips])
def test_a_clip_longer_than_a_chunk_gets_the_mean_of_its_frames(metric):
    original = torch.rand(1, 3, metrics.CHUNK + 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    video = original * torch.linspace(1, 0.2, original.shape[2])[:, None, None]
    frames = [metric(video[:, :, [t]], original[:, :, [t]]) for t in range(original.shape[2])]
    assert metric(video, original) == pytest.approx(sum(frames) / len(frames), rel=1e-5)
    assert max(frames) > 2 * min(frames)  # so that another weighting of the frames would show


def test_st_lpips_of_equal_videos_is_zero_and_grows_with_blur(video):
    distances = [metrics.st_lpips(blurred(video, sigma), video) for sigma in (0, 1, 2, 4, 8)]
    assert distances[0] == 0
    assert all(later > earlier + 0.001 for earlier, later in pairwise(distances)), distances


def test_st_lpips_hardly_sees_a_shift_by_a_pixel_that_psnr_punishes(video):
    shifted, blur = panning(texture(140, 160).roll(1, dims=2), 3, 2, -3), blurred(video, 1.5)
    assert metrics.psnr(blur, video) > metrics.psnr(shifted, video)
    assert metrics.st_lpips(shifted, video) < metrics.st_lpips(blur, video)


def test_st_lpips_is_what_its_package_gives_with_nothing_left_random(video):
    from stlpips_pytorch.stlpips import LPIPS

    networks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        networks.append(LPIPS(net="alex", variant="shift_tolerant", verbose=False))
    assert all(torch.equal(a, b) for a, b in zip(*(network.state_dict().values() for network in networks), strict=True))
    with torch.inference_mode():
        values = [networks[0](blurred(video, 2)[:, :, t], video[:, :, t]).item() for t in range(video.shape[2])]
    assert metrics.st_lpips(blurred(video, 2), video) == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_warping_error_of_a_still_clip_is_the_mean_square_of_its_flicker_times_1000():
    original = texture(64, 80)[None, :, None].expand(-1, -1, 4, -1, -1)
    flicker = torch.tensor([0.0, 0.2, 0.0, 0.2])[:, None, None]  # 0.1 of the range [0, 1]
    assert metrics.warping_error(original, original) == pytest.approx(0, abs=1e-6)
    assert metrics.warping_error(0.5 * original + flicker, original) == pytest.approx(10, rel=1e-3)


def test_a_video_that_moves_with_the_original_has_no_warping_error_and_one_that_does_not_has(video):
    other = texture(140, 160, seed=1)
    moving, still, backward = (panning(other, 3, dy, dx) for dy, dx in ((2, -3), (0, 0), (-2, 3)))
    scale = metrics.warping_error(still, video)
    assert scale > 5
    assert metrics.warping_error(moving, video) < 0.03 * scale
    assert metrics.warping_error(backward, video) > scale


def test_optical_flow_of_a_known_shift_leads_to_where_a_pixel_was():
    previous, current = panning(texture(140, 160), 2, 2, -3)[0].unbind(1)
    offset, visible = metrics.visible_motion(previous, current)
    middle = offset[:, 16:-16, 16:-16]  # the window moved 2 down and 3 left, so its contents 2 up and 3 right
    assert (middle - torch.tensor([-3.0, 2.0])[:, None, None]).abs().max() < 0.3
    assert visible[16:-16, 16:-16].all()
    assert not visible[:, :2].any() and not visible[-1:].any()  # came from outside the frame


def test_what_a_passing_object_uncovers_does_not_count():
    height, width = 96, 128
    background, front = texture(height, width), texture(40, 40, seed=1)
    original = background[None, :, None].repeat(1, 1, 2, 1, 1)
    original[0, :, 0, 28:68, 30:70] = front
    original[0, :, 1, 28:68, 38:78] = front
    _, visible = metrics.visible_motion(*original[0].unbind(1))
    assert visible[34:62, 31:37].float().mean() < 0.35  # uncovered
    assert visible[34:62, 46:70].float().mean() > 0.95  # the object itself
    assert visible[:20].float().mean() > 0.95


def test_values_outside_the_range_are_clamped(video):
    for metric in metrics.METRICS.values():
        assert metric(2 * video, video) == metric((2 * video).clamp(-1, 1), video)
