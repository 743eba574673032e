"""Metrics have known answers."""

import re
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import REPO
from scipy.ndimage import gaussian_filter

from simplegvr_core.evaluation import full_reference
from simplegvr_core.evaluation import motion as motion_metrics
from simplegvr_core.evaluation import niqe as no_reference
from simplegvr_core.evaluation.metrics import METRICS, measure
from simplegvr_core.evaluation.result import EvaluationClip, Result
from simplegvr_core.evaluation.seams import pixel_borders
from simplegvr_core.tiling import Tiling
from simplegvr_core.video.frames import area_downscale, to_video
from simplegvr_core.video.read import read_video

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


def score(name: str, video: torch.Tensor, original: torch.Tensor) -> float:
    """Returns a metric of video, whose source is the original at a quarter of its size."""
    return measure(name, Result(video, EvaluationClip(tuple(original.shape[3:]), original, area_downscale(original, 4)))).value


def test_psnr_of_a_constant_error_of_one_level_is_48_db_and_at_most_100():
    original = torch.zeros(1, 3, 2, 16, 16)
    assert score("psnr", original + 2 / 255, original) == pytest.approx(48.13, abs=0.01)
    assert score("psnr", original, original) == full_reference.EQUAL


def test_psnr_of_a_clip_is_that_of_its_mean_square_error():
    original = torch.zeros(1, 3, 2, 16, 16)
    video = original.clone()
    video[:, :, 1] = 0.2  # 0.1 of the range
    found = measure("psnr", Result(video, EvaluationClip((16, 16), original)))
    assert found.value == pytest.approx(10 * np.log10(2 / 0.1**2))
    assert found.curve == pytest.approx((full_reference.EQUAL, 20))


def test_ssim_of_equal_videos_is_one_and_falls_with_noise():
    original = torch.rand(1, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert score("ssim", original, original) == pytest.approx(1, abs=1e-5)
    assert score("ssim", original + 0.3 * torch.randn_like(original), original) < 0.95


def test_ssim_is_what_its_paper_defines(video):
    """Of values in [0, 1]: in [-1, 1] its brightness term would be another."""
    x, y = ((each[0].transpose(0, 1).double() + 1) / 2 for each in (blurred(video, 1) * 0.8 + 0.1, video))
    line = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    window = (torch.outer(line, line) / line.sum() ** 2).expand(3, 1, 11, 11)
    means = [torch.nn.functional.conv2d(each, window, groups=3) for each in (x, y, x * x, y * y, x * y)]
    mx, my, vx, vy, vxy = *means[:2], means[2] - means[0] ** 2, means[3] - means[1] ** 2, means[4] - means[0] * means[1]
    expected = (2 * mx * my + 0.01**2) * (2 * vxy + 0.03**2) / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))
    found = full_reference.ssim(blurred(video, 1) * 0.8 + 0.1, video)
    torch.testing.assert_close(found.double(), expected.mean((1, 2, 3)), atol=1e-5, rtol=0)


def test_ms_ssim_forgives_what_is_lost_at_the_finest_scale_and_is_the_product_over_scales():
    """Wang et al. 2003: contrast and structure at each of five scales, luminance at the coarsest, with their published weights."""
    original = panning(texture(240, 280), 2, 1, 1, 192, 208)
    video = blurred(original, 1)
    assert score("ms_ssim", original, original) == pytest.approx(1, abs=1e-5)
    assert 1 > score("ms_ssim", video, original) > score("ssim", video, original)
    from torchmetrics.functional.image import structural_similarity_index_measure

    product, pair = 1.0, [(each[0, :, [0]].transpose(0, 1) + 1) / 2 for each in (original, video)]
    for i, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        both, contrast = structural_similarity_index_measure(*pair[::-1], data_range=1.0, return_contrast_sensitivity=True)
        product *= (both if i == 4 else contrast).item() ** weight
        pair = [torch.nn.functional.avg_pool2d(x, 2) for x in pair]
    assert full_reference.ms_ssim(video, original)[0].item() == pytest.approx(product, abs=1e-4)


@pytest.mark.parametrize("metric", ["ssim", "st_lpips"])
def test_a_clip_longer_than_a_chunk_gets_the_numbers_of_its_frames(metric):
    original = torch.rand(1, 3, full_reference.CHUNK + 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    video = original * torch.linspace(1, 0.2, original.shape[2])[:, None, None]
    frames = [score(metric, video[:, :, [t]], original[:, :, [t]]) for t in range(original.shape[2])]
    found = measure(metric, Result(video, EvaluationClip((40, 48), original)))
    assert found.curve == pytest.approx(frames, rel=1e-4)
    assert found.value == pytest.approx(sum(frames) / len(frames), rel=1e-5)
    assert max(frames) > 2 * min(frames)  # so that another weighting of the frames would show


def test_st_lpips_of_equal_videos_is_zero_and_grows_with_blur(video):
    distances = [score("st_lpips", blurred(video, sigma), video) for sigma in (0, 1, 2, 4, 8)]
    assert distances[0] == 0
    assert all(later > earlier + 0.001 for earlier, later in pairwise(distances)), distances


def test_st_lpips_hardly_sees_a_shift_by_a_pixel_that_psnr_punishes(video):
    shifted, blur = panning(texture(140, 160).roll(1, dims=2), 3, 2, -3), blurred(video, 1.5)
    assert score("psnr", blur, video) > score("psnr", shifted, video)
    assert score("st_lpips", shifted, video) < score("st_lpips", blur, video)


def test_st_lpips_is_what_its_package_gives_with_nothing_left_random(video):
    from stlpips_pytorch.stlpips import LPIPS

    networks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        networks.append(LPIPS(net="alex", variant="shift_tolerant", verbose=False))
    assert all(torch.equal(a, b) for a, b in zip(*(network.state_dict().values() for network in networks), strict=True))
    with torch.inference_mode():
        values = [networks[0](blurred(video, 2)[:, :, t], video[:, :, t]).item() for t in range(video.shape[2])]
    assert full_reference.st_lpips(blurred(video, 2), video).tolist() == pytest.approx(values, rel=1e-5)


def test_st_lpips_of_a_large_frame_is_the_mean_of_the_middle_of_its_quarters():
    """560 x 720 pixels: the middles are rows 140 and 420, columns 180 and 540."""
    noise = torch.rand(2, 1, 3, 1, 560, 720, generator=torch.Generator().manual_seed(3)) * 2 - 1
    starts = [(y - 96, x - 96) for y in (140, 420) for x in (180, 540)]
    parts = [full_reference.st_lpips(*(video[..., y : y + 192, x : x + 192] for video in noise)) for y, x in starts]
    assert torch.allclose(full_reference.st_lpips(*noise), torch.stack(parts).mean(0), atol=1e-6)


def test_flat_noise_is_the_noise_where_the_original_is_flat():
    """Noise of 2 levels on the flat left half, of 20 on the textured right half."""
    original = texture(96, 160)[None, :, None].repeat(1, 1, 2, 1, 1)
    original[..., :80] = 0.25
    noise = torch.randn(1, 1, 2, 96, 160, generator=torch.Generator().manual_seed(0)) / 127.5
    video = original + noise * torch.tensor([2.0] * 80 + [20.0] * 80)
    left_of_itself = (1 - 1 / 81) ** 0.5
    assert full_reference.flat_noise(video, original).tolist() == pytest.approx([2 * left_of_itself] * 2, rel=0.05)
    assert full_reference.flat_noise(original, original).max() < 0.2
    assert full_reference.flat_noise(video[..., 80:], original[..., 80:]).isnan().all()


def test_vmaf_of_equal_videos_is_nearly_100_and_falls_with_blur_frame_by_frame():
    original = panning(texture(240, 280), 5, 1, 2, 160, 176)
    video = torch.cat((original[:, :, :2], blurred(original[:, :, 2:], 2)), dim=2)
    equal, curve = full_reference.vmaf(original, original), full_reference.vmaf(video, original)
    assert equal.min() > 95 and equal.mean() > 96
    assert len(curve) == 5 and curve[0] > 95 and curve[2:].max() < 60
    assert full_reference.vmaf(blurred(original, 3), original).mean() < curve[2:].mean()


def test_an_ffmpeg_that_cannot_measure_vmaf_is_an_error_with_a_cure(monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", shutil.which("false") or shutil.which("where"))
    video = panning(texture(64, 64), 2, 1, 2, 32, 32)
    with pytest.raises(OSError, match=r"VMAF cannot be measured: .*unset IMAGEIO_FFMPEG_EXE"):
        full_reference.vmaf(video, video)


NIQE_OF_BASICSR = {  # of the first frames of bundled clips, by calculate_niqe of BasicSR 1.4.2 with convert_to="y", crop_border=0
    "assets/demo_original.mp4": 3.5218,
    "assets/demo.mp4": 4.8239,
    "tests/clips/held_out_12s.mp4": 5.1681,
    "tests/clips/held_out_30s.mp4": 6.9330,
}


@pytest.mark.parametrize(("path", "expected"), NIQE_OF_BASICSR.items())
def test_niqe_is_that_of_basicsr(path, expected):
    """Up to what its 32-bit numbers leave open: in flat parts the sign of a rounding error decides on which side a pixel counts."""
    images, _ = read_video(REPO / path, 1)
    assert no_reference.niqe(to_video(images)).item() == pytest.approx(expected, rel=3e-3)


def test_niqe_grows_with_blur_and_with_noise_and_a_flat_frame_has_none():
    video = to_video(read_video(REPO / "assets" / "demo_original.mp4", 1)[0])
    clean, noisy = (no_reference.niqe(x).item() for x in (video, video + 0.2 * torch.randn_like(video)))
    assert clean < noisy and clean + 1 < no_reference.niqe(blurred(video, 1.5)).item()
    assert no_reference.niqe(torch.zeros(1, 3, 2, 192, 192)).isnan().all()


def test_halving_is_that_of_matlab_on_a_ramp_and_keeps_the_mean():
    ramp = torch.arange(40, dtype=torch.float64).expand(32, 40)
    small = no_reference.halved(ramp)
    assert small.shape == (16, 20)
    assert torch.allclose(small[:, 4:16], torch.arange(0.5, 40, 2).double()[4:16].expand(16, 12), atol=1e-9)
    assert small[:, 0].tolist() == pytest.approx([0.44921875] * 16)  # the cubic's weights by hand, columns 2, 1, 0 before column 0
    assert small.mean().item() == pytest.approx(ramp.mean().item())


def test_warping_error_of_a_still_clip_is_the_mean_square_of_its_flicker_times_1000():
    original = texture(64, 80)[None, :, None].expand(-1, -1, 4, -1, -1)
    alternating = torch.tensor([0.0, 0.2, 0.0, 0.2])[:, None, None]  # 0.1 of the range [0, 1]
    assert score("warping_error", original, original) == pytest.approx(0, abs=1e-6)
    assert score("warping_error", 0.5 * original + alternating, original) == pytest.approx(10, rel=1e-3)


def test_a_video_that_moves_with_the_original_has_no_warping_error_and_one_that_does_not_has(video):
    other = texture(140, 160, seed=1)
    moving, still, backward = (panning(other, 3, dy, dx) for dy, dx in ((2, -3), (0, 0), (-2, 3)))
    scale = score("warping_error", still, video)
    assert scale > 5
    assert score("warping_error", moving, video) < 0.03 * scale
    assert score("warping_error", backward, video) > scale


def test_optical_flow_of_a_known_shift_leads_to_where_a_pixel_was():
    previous, current = panning(texture(140, 160), 2, 2, -3)[0].unbind(1)
    found = motion_metrics.flow_pair(previous, current)
    shift = torch.tensor([-3.0, 2.0])[:, None, None]  # the window moved 2 down and 3 left, so its contents 2 up and 3 right
    assert (found.backward[:, 16:-16, 16:-16] - shift).abs().max() < 0.3
    assert (found.forward[:, 16:-16, 16:-16] + shift).abs().max() < 0.3
    assert found.visible[16:-16, 16:-16].all()
    assert not found.visible[:, :2].any() and not found.visible[-1:].any()  # came from outside the frame


def test_what_a_passing_object_uncovers_does_not_count():
    height, width = 96, 128
    background, front = texture(height, width), texture(40, 40, seed=1)
    original = background[None, :, None].repeat(1, 1, 2, 1, 1)
    original[0, :, 0, 28:68, 30:70] = front
    original[0, :, 1, 28:68, 38:78] = front
    visible = motion_metrics.flow_pair(*original[0].unbind(1)).visible
    assert visible[34:62, 31:37].float().mean() < 0.35  # uncovered
    assert visible[34:62, 46:70].float().mean() > 0.95  # the object itself
    assert visible[:20].float().mean() > 0.95


def test_tof_is_the_length_of_what_the_motion_differs_by(video):
    moving, still = panning(texture(140, 160, seed=1), 3, 2, -3), video[:, :, :1].expand(-1, -1, 3, -1, -1)
    assert score("tof", video, video) == 0
    assert score("tof", still, video) == pytest.approx(13**0.5, rel=0.06)  # 2 and 3 pixels; DIS knows little at the edges
    assert score("tof", moving, video) < 0.4


def test_flicker_is_the_change_of_brightness_that_the_source_has_not(video):
    original = 0.5 * video
    fade = torch.tensor([0.0, 0.1, 0.2])[:, None, None]
    alternating = torch.tensor([0.0, 0.2, 0.0])[:, None, None]  # 25.5 levels
    assert score("flicker", original, original) == 0
    assert score("flicker", original + 0.3, original) == pytest.approx(0, abs=1e-3)  # brighter all the time
    assert score("flicker", original + fade, original + fade) == 0
    assert score("flicker", original + alternating, original) == pytest.approx(25.5, rel=1e-3)
    found = measure("flicker", Result(original + fade, EvaluationClip((72, 104), original, area_downscale(original, 4))))
    assert np.isnan(found.curve[0]) and found.curve[1:] == pytest.approx((12.75, 12.75), rel=1e-3)


def test_lr_consistency_is_the_psnr_of_what_area_averaging_leaves(video):
    detail = torch.tensor([[1.0, -1], [-1, 1]]).repeat(36, 52) * 0.4
    assert score("lr_consistency", 0.5 * video + detail, 0.5 * video) > 90  # invisible at a quarter of the size
    assert score("psnr", 0.5 * video + detail, 0.5 * video) < 15
    assert score("lr_consistency", 0.5 * video + 2 / 255, 0.5 * video) == pytest.approx(48.13, abs=0.02)


def test_seams_show_where_boxes_meet_and_nowhere_else():
    tiling = Tiling((10, None, 8), (5, 0, 4))
    borders = pixel_borders(tiling)
    assert (borders.period, borders.tile, borders.overlap, borders.tile_overlap) == (20, (32, 0), 20, (32, 0))
    video = 0.3 * panning(texture(200, 300), 60, 1, 1, 64, 128)
    seamed = video.clone()
    seamed[..., 32:64] += 0.1
    clip = EvaluationClip((64, 128), video, borders=replace(borders, tile_overlap=(0, 0), period=0))
    assert measure("tile_seams", Result(video, clip)).value < 1.5
    assert measure("tile_seams", Result(seamed, clip)).value > 3
    assert measure("segment_seams", Result(seamed, clip)).value is None
    jumping = video.clone()
    jumping[:, :, 17:37] += 0.1
    clip = EvaluationClip((64, 128), video, borders=replace(borders, tile=(0, 0)))
    assert measure("segment_seams", Result(video, clip)).value < 1.2
    assert measure("segment_seams", Result(jumping, clip)).value > 1.5


def test_what_a_metric_needs_and_a_clip_lacks_is_said():
    small = EvaluationClip((96, 160), torch.zeros(1, 3, 2, 96, 160))
    assert METRICS["psnr"].obstacle(small) is None
    assert METRICS["ms_ssim"].obstacle(small) == "it needs 161 pixels a side, and a clip has 160 x 96"
    assert "--segment" in METRICS["tile_seams"].obstacle(small)
    assert "original" in METRICS["vmaf"].obstacle(replace(small, original=None))
    absent = replace(METRICS["psnr"], absent=lambda: "no_such_thing is not installed")
    assert absent.obstacle(small) == "no_such_thing is not installed"


def test_the_document_has_a_row_for_every_metric():
    text = (REPO / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?)\| (\w+) \|", text, re.M)
    expected = [(name, metric.label, metric.unit, metric.better) for name, metric in METRICS.items()]
    assert [(name, label, unit.strip(), better) for name, label, unit, better in rows] == expected


@pytest.mark.parametrize("name", ["psnr", "ssim", "st_lpips", "warping_error", "tof", "flicker", "lr_consistency"])
def test_values_outside_the_range_are_clamped(name, video):
    assert score(name, 2 * video, video) == score(name, (2 * video).clamp(-1, 1), video)
