"""Degradations: classical, flow-based, model-guided, and the recipes made of them."""

import math
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import ATTENTION, REPO, random_weights
from einops import rearrange

from simplegvr_core.degradations import RECIPES, ModelGuidedConfig, Recipe, degrade_latent, degrade_video
from simplegvr_core.degradations.blur import BlurConfig, bell_kernel, sample_kernels, sinc_kernel
from simplegvr_core.degradations.classical import (
    PUBLISHED_AREA,
    ClassicalConfig,
    NoiseConfig,
    PassConfig,
    ResizeConfig,
    apply_codec,
    apply_noise,
    degrade_classical,
)
from simplegvr_core.degradations.codecs import DECODERS, jpeg, video_codec
from simplegvr_core.degradations.flow_based import FlowBasedConfig, FrameMotion, bleed_colors, degrade_flow_based
from simplegvr_core.degradations.motion import MotionConfig, estimate_motion, optical_flow_picture
from simplegvr_core.degradations.randomness import Drift, choose, happens
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.video.frames import area_downscale, to_video
from simplegvr_core.video.read import read_video

WIDTH, HEIGHT = 240, 144
Z = torch.randn(1, 16, 3, 5, 7, generator=torch.Generator().manual_seed(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Returns (height, width, 3) in [-0.6, 0.6], gray, of details down to two pixels."""
    noise = torch.rand(1, 1, height // 2, width // 2, generator=seeded(seed))
    fine = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return np.repeat(fine[0, 0].numpy()[..., None] * 1.2 - 0.6, 3, axis=2).astype(np.float32)


def half_static_clip(motion=(6, 0), tint=0.0) -> torch.Tensor:
    """Returns video (1, 3, 5, 144, 240): the left half stands still, the right half moves by motion (x, y) a frame.

    tint: the moving half is redder in even frames and greener in odd ones, by as much.
    """
    still, wide = texture(HEIGHT, WIDTH // 2, 1), texture(HEIGHT + 80, WIDTH // 2 + 80, 2)
    frames = []
    for i in range(5):
        x, y = 40 - motion[0] * i, 40 - motion[1] * i
        right = wide[y : y + HEIGHT, x : x + WIDTH // 2] + tint * (-1) ** i * np.array([1, -0.51, 0])  # of one brightness
        frames.append(np.concatenate([still, right], axis=1).astype(np.float32))
    return rearrange(torch.from_numpy(np.stack(frames)), "F H W C -> 1 C F H W").contiguous()


@pytest.fixture(scope="module")
def film():
    return to_video(read_video(REPO / "assets" / "demo_original.mp4", 33)[0][25:30])


def degrade(video: torch.Tensor, seed: int = 0, **changes) -> torch.Tensor:
    config = FlowBasedConfig(**changes)
    return degrade_flow_based(video, estimate_motion(video, config.motion), config, seeded(seed))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(np.mean((a - b) ** 2))


# Flow-based


def test_static_half_stays_bit_identical_and_the_moving_half_changes():
    clip = half_static_clip()
    out = degrade(clip)
    assert torch.equal(out[..., : WIDTH // 2], clip[..., : WIDTH // 2])
    changed = (out != clip).any(dim=1)[0, 1:, :, WIDTH // 2 :]
    assert changed.float().mean() > 0.8
    assert torch.equal(out[:, :, 0], clip[:, :, 0])


def test_every_pixel_outside_the_motion_mask_stays_bit_identical_in_real_video(film):
    moving = torch.from_numpy(estimate_motion(film, MotionConfig()).moving)
    out = degrade(film)
    assert 0.1 < moving[1:].float().mean() < 0.7
    changed = (out != film).any(dim=1)[0]
    assert not (changed & ~moving).any()
    assert changed[moving].float().mean() > 0.9


def test_colors_are_pulled_toward_the_frame_before():
    clip = half_static_clip(tint=0.2)
    out = degrade(clip)
    clean, degraded = (v[0, 0, :, 10:-10, WIDTH // 2 + 10 : -10] - v[0, 1, :, 10:-10, WIDTH // 2 + 10 : -10] for v in (clip, out))
    pull = (degraded - clean)[1:] / (clean[:-1] - clean[1:])
    assert (pull.mean(dim=(1, 2)) > 0.03).all()  # of the whole moving half, a share of the way
    assert (pull.amax(dim=(1, 2)) > 0.3).all()  # in the middle of an ellipse
    assert pull.min() > -0.01 and pull.max() < 1


def spectrum(video: torch.Tensor) -> tuple[float, float]:
    """Returns the power of the moving half at high frequencies along x (low along y), and along y."""
    window = np.outer(np.hanning(96), np.hanning(96))
    patch = video[0, 1, 2:, 24:120, WIDTH // 2 + 12 : WIDTH // 2 + 108].numpy()
    power = (np.abs(np.fft.fft2((patch - patch.mean()) * window)) ** 2).mean(axis=0)
    return power[:6, 10:30].mean(), power[10:30, :6].mean()


@pytest.mark.parametrize("motion", [(6, 0), (0, -6)])
def test_blur_lies_along_the_motion(motion):
    clip = half_static_clip(motion)
    kept = np.array(spectrum(degrade(clip))) / spectrum(clip)
    along, across = kept if motion[0] else kept[::-1]
    assert along < 0.3 * across


def test_faster_motion_blurs_more():
    kept = []
    for speed in (2, 4, 8):
        clip = half_static_clip((speed, 0))
        kept.append(spectrum(degrade(clip, blend=(0, 0), blur_gain=(1, 1)))[0] / spectrum(clip)[0])
    assert kept[0] > 1.5 * kept[1] > 2 * kept[2]


def test_a_still_clip_and_a_single_frame_stay_as_they_are(film):
    still = film[:, :, :1].expand(-1, -1, 3, -1, -1)
    assert torch.equal(degrade(still), still)
    assert torch.equal(degrade(film[:, :, :1]), film[:, :, :1])


def ellipse_color(before: np.ndarray, motion: tuple[int, int]) -> np.ndarray:
    """Returns the color (3,) that a black pixel at (30, 20) gets from one ellipse, of half its weight."""
    optical_flow = np.broadcast_to(np.float32(motion), (61, 91, 2))
    inside = np.zeros((61, 91), np.float32)
    inside[30, 20] = 1  # the only place that moves
    config = FlowBasedConfig(ellipses=(1, 1), ellipse_size=(0.2, 0.2), blend=(0.5, 0.5), samples=1000)
    return bleed_colors(np.zeros_like(before), before, FrameMotion(optical_flow, inside), config=config, generator=seeded(3))[30, 20]


def test_an_ellipse_takes_its_color_from_where_the_motion_comes_from():
    before = np.zeros((61, 91, 3), np.float32)
    before[:, :45], before[:, 45:] = (1, 0, 0), (0, 0, 1)
    red, _, blue = ellipse_color(before, (0, 3))
    assert red == pytest.approx(0.5) and blue == 0
    for motion, share in ((24, 0.479), (50, 0.790)):  # normal: the place, 20 + motion, beyond 44.5 by (12.2 + motion) / 2
        red, _, blue = ellipse_color(before, (motion, 0))
        assert blue / (red + blue) == pytest.approx(share, abs=0.04)


def test_an_ellipse_is_strongest_in_its_middle_and_ends_at_its_axes():
    optical_flow, everywhere = np.float32([[[2, 0]]] * 1).repeat(61, 0).repeat(91, 1), np.ones((61, 91), np.float32)
    config = FlowBasedConfig(ellipses=(1, 1), ellipse_size=(0.2, 0.2), blend=(0.5, 0.5))
    black, white = np.zeros((61, 91, 3), np.float32), np.ones((61, 91, 3), np.float32)
    out = bleed_colors(black, white, FrameMotion(optical_flow, everywhere), config=config, generator=seeded(1))
    y, x = np.unravel_index(out[..., 0].argmax(), (61, 91))
    assert out.max() == pytest.approx(0.5)
    radius = np.hypot(*(np.mgrid[:61, :91] - np.array([y, x])[:, None, None]))
    order = np.argsort(radius.ravel())
    assert (np.diff(out[..., 0].ravel()[order]) <= 1e-6).all()
    assert (out[radius >= 0.2 * 61] == 0).all()
    assert (out[radius < 0.19 * 61] > 0).all()


def test_optical_flow_points_to_where_a_pixel_was():
    motion = estimate_motion(half_static_clip((6, -3)), MotionConfig())
    right = motion.optical_flow[1:, 20:-20, WIDTH // 2 + 20 : -20]
    assert np.abs(right - (-6, 3)).max() < 0.5
    assert motion.moving[1:, 20:-20, WIDTH // 2 + 20 : -20].all()
    assert not motion.moving[..., : WIDTH // 2].any()
    assert not motion.moving[0].any()


def test_optical_flow_does_not_depend_on_the_number_of_threads(film):
    flows, threads = [], cv2.getNumThreads()
    for count in (1, 3):
        cv2.setNumThreads(count)
        flows.append(estimate_motion(film, MotionConfig()).optical_flow)
    cv2.setNumThreads(threads)
    np.testing.assert_array_equal(*flows)


def test_picture_of_optical_flow_has_a_color_for_each_direction():
    optical_flow = np.zeros((1, 3, 5, 2), np.float32)
    optical_flow[0, 0], optical_flow[0, 1] = (4, 0), (-2, 0)
    picture = optical_flow_picture(optical_flow)
    assert picture.shape == (1, 3, 5, 3)
    assert picture[0, :, 2].tolist() == [[255, 0, 0], [0, 127, 128], [0, 0, 0]]  # red, half as bright cyan, black


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 12), (13, 300), (15, 1000), (300, 13)])
def test_flow_based_works_at_any_size(size):
    video = torch.rand(1, 3, 3, *size, generator=seeded(1)) * 2 - 1
    assert degrade(video).shape == video.shape


# Classical


@pytest.mark.parametrize("scale, size", [(1, (37, 53)), (2, (37, 53)), (3, (64, 50)), (3, (9, 16)), (4, (35, 12))])
def test_classical_gives_the_exact_size_in_range_whatever_is_drawn(scale, size):
    video = torch.rand(1, 3, 3, *size, generator=seeded(1)) * 2 - 1
    for seed in range(8):
        out = degrade_classical(video, scale, ClassicalConfig(), seeded(seed))
        assert out.shape == (1, 3, 3, size[0] // scale, size[1] // scale)
        assert out.min() >= -1 and out.max() <= 1


def test_classical_hurts_but_moves_nothing(film):
    clean = area_downscale(film, 3)
    middle = np.s_[..., 10:-10, 10:-10]
    for seed in range(4):
        out = degrade_classical(film, 3, ClassicalConfig(), seeded(seed))
        error = {
            shift: (out.roll(shift, (3, 4)) - clean)[middle].square().mean().item() for shift in [(0, 0), (0, 3), (3, 0), (0, -3), (-3, 0)]
        }
        assert min(error, key=error.get) == (0, 0)
        assert 0.001 < error[0, 0] < 0.3


HARMLESS = PassConfig(
    BlurConfig(probability=0), ResizeConfig((0, 0, 1), smallest=1, largest=1, step=0), NoiseConfig(Drift(0, 0), Drift(0, 0))
)
FIRST, SECOND = ClassicalConfig().first, ClassicalConfig().second


@pytest.mark.parametrize(
    "change",
    [
        {"first": replace(HARMLESS, blur=FIRST.blur)},
        {"first": replace(HARMLESS, resize=FIRST.resize)},
        {"first": replace(HARMLESS, noise=FIRST.noise)},
        {"second": replace(HARMLESS, blur=SECOND.blur)},
        {"second": replace(HARMLESS, resize=SECOND.resize)},
        {"second": replace(HARMLESS, noise=SECOND.noise)},
        {"quality": Drift(30, 30)},
        {"bits": (1e4, 1e4)},
        {"last_blur": ClassicalConfig().last_blur},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_step_of_the_classical_degradation_counts(film, change):
    """With all other steps made harmless."""
    small = area_downscale(film, 3)
    harmless = dict(first=HARMLESS, second=HARMLESS, quality=Drift(100, 100), bits=(1e7, 1e7), last_blur=BlurConfig(probability=0))
    best, worst = (
        min(psnr(degrade_classical(small, 1, ClassicalConfig(**config), seeded(seed)).numpy(), small.numpy()) for seed in range(3))
        for config in (harmless, harmless | change)
    )
    assert best > 25
    assert worst < best - 1.5


def images(height: int, width: int, count: int = 5) -> list[np.ndarray]:
    """Returns smooth colored images, each brighter than the one before."""
    ramp = np.linspace(0, 1, height * width).reshape(height, width)
    return [(np.stack([ramp, 1 - ramp, ramp.clip(0.5)], 2) * (0.4 + 0.1 * i)).astype(np.float32) for i in range(count)]


@pytest.mark.parametrize("codec", DECODERS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 34), (37, 53)])
def test_video_codecs_keep_size_order_and_looks(codec, size):
    before = images(*size)
    after = video_codec(before, codec, 100_000)
    assert [image.shape for image in after] == [(*size, 3)] * 5
    assert np.abs(np.array(after).mean((1, 2)) - np.array(before).mean((1, 2))).max() < 0.06
    assert (np.diff([image.mean() for image in after]) > 0).all()
    np.testing.assert_array_equal(after, video_codec(before, codec, 100_000))


@pytest.mark.parametrize("codec", DECODERS)
def test_fewer_bits_look_worse(codec, film):
    frames = list(rearrange(area_downscale(film, 2)[0] / 2 + 0.5, "C F H W -> F H W C").contiguous().numpy())
    few, many = (psnr(np.array(video_codec(frames, codec, bits)), np.array(frames)) for bits in (10_000, 100_000))
    assert few + 2 < many


def mosaic(film: torch.Tensor, rows: int, columns: int) -> np.ndarray:
    """Returns frames (F, rows * 216, columns * 256, 3) in [0, 1]: one crop of the film, again and again."""
    crop = rearrange(film[0, :, :5, 50:266, 100:356] / 2 + 0.5, "C F H W -> F H W C").numpy()
    return np.tile(crop, (1, rows, columns, 1))


@pytest.mark.parametrize("bits", [1e4, 1e5])
def test_compression_is_as_strong_on_large_frames_as_on_the_crops_its_bits_were_published_for(film, bits, monkeypatch):
    """The same texture, thirty times as much of it: a tenth of the bits a pixel would cost more than 8 dB."""
    found = {}
    for rows, columns in ((1, 1), (5, 6)):
        frames = mosaic(film, rows, columns)
        area = frames.shape[1] * frames.shape[2] / PUBLISHED_AREA
        config = ClassicalConfig(codecs=("libx264",), bits=(bits, bits))
        out = np.stack(apply_codec(list(frames), config, area, seeded(0)))
        found[rows] = psnr(out, frames)
    assert abs(found[5] - found[1]) < 2.5
    unscaled = np.stack(apply_codec(list(mosaic(film, 5, 6)), config, 1, seeded(0)))
    assert psnr(unscaled, mosaic(film, 5, 6)) < found[1] - 5


def test_one_order_leaves_the_second_pass_out_and_hurts_less(film):
    clean = area_downscale(film[:, :, :3], 3)
    errors = {
        name: np.mean([psnr(degrade_video(film[:, :, :3], 3, RECIPES[name], seeded(seed)).numpy(), clean.numpy()) for seed in range(4)])
        for name in ("one_order", "classical")
    }
    assert errors["one_order"] > errors["classical"] + 1


def test_jpeg_keeps_colors_and_loses_with_quality(film):
    red = np.zeros((8, 24, 3), np.float32)
    red[..., 0] = 1
    np.testing.assert_allclose(jpeg(red, 95), red, atol=0.02)
    frame = rearrange(film[0, :, 0] / 2 + 0.5, "C H W -> H W C").contiguous().numpy()
    assert psnr(jpeg(frame, 30), frame) + 3 < psnr(jpeg(frame, 95), frame)


def test_bell_kernels_are_gaussians_at_exponent_one_and_turn():
    gaussian = cv2.getGaussianKernel(9, 1.3)
    for kind in ("iso", "generalized_iso"):
        np.testing.assert_allclose(bell_kernel(kind, 9, sigmas=(1.3, 1.3), angle=0.7, beta=1.0), gaussian @ gaussian.T, atol=1e-6)
    along_x, along_y = (bell_kernel("aniso", 9, sigmas=(3, 0.5), angle=angle, beta=1) for angle in (0, math.pi / 2))
    np.testing.assert_allclose(along_x, along_y.T, atol=1e-6)
    assert along_x[4, 1] > 100 * along_x[1, 4]
    flat = bell_kernel("plateau_iso", 21, sigmas=(5, 5), angle=0, beta=2.0)
    assert flat[10, 12] > 0.95 * flat[10, 10]  # a Gaussian has 0.92


def test_sinc_lets_through_what_is_below_its_cut_off():
    response = np.abs(np.fft.fft2(sinc_kernel(101, math.pi / 2), (200, 200)))[0]  # of frequency 2 pi k / 200
    assert (np.abs(response[:40] - 1) < 0.15).all()
    assert (response[60:100] < 0.15).all()


def test_kernels_drift_sum_to_one_and_keep_their_size():
    for seed in range(20):
        kernels = list(sample_kernels(BlurConfig(), 4, seeded(seed)))
        assert len({kernel.shape for kernel in kernels}) == 1
        np.testing.assert_allclose([kernel.sum() for kernel in kernels], 1, atol=1e-5)
        assert not np.array_equal(kernels[0], kernels[1])
        np.testing.assert_allclose(kernels[0], kernels[0][::-1, ::-1], atol=1e-6)


def test_parameters_drift_by_their_step_within_their_range():
    values = list(Drift(2, 3, 0.1).values(2000, seeded(0)))
    assert 2 <= min(values) < 2.1 and 2.9 < max(values) <= 3
    assert 0.09 < np.abs(np.diff(values)).max() <= 0.1
    assert len(set(Drift(2, 3).values(9, seeded(0)))) == 1


def test_choices_follow_their_weights():
    generator = seeded(0)
    drawn = [choose(("a", "b", "c"), generator, (0.5, 0.0, 1.5)) for _ in range(2000)]
    assert "b" not in drawn
    assert abs(drawn.count("a") / 2000 - 0.25) < 0.03
    assert abs(sum(happens(0.3, generator) for _ in range(2000)) / 2000 - 0.3) < 0.03


def noise(config: NoiseConfig, value: float, seeds=range(12)) -> list[np.ndarray]:
    frame = np.full((64, 96, 3), value, np.float32)
    frame[0, :, :] = np.linspace(0, 1, 96)[:, None]  # so that the frame has many levels
    return [(apply_noise([frame], config, seeded(seed))[0] - frame)[1:] for seed in seeds]


def test_gaussian_noise_has_its_strength_and_is_gray_at_times():
    drawn = noise(NoiseConfig(Drift(20, 20), Drift(0, 0), gray=0.5), 0.5)
    gaussian = [n for n in drawn if n.any()]
    np.testing.assert_allclose([n.std() * 255 for n in gaussian], 20, rtol=0.05)
    gray = [np.array_equal(n[..., 0], n[..., 2]) for n in gaussian]
    assert 0 < sum(gray) < len(gray)


def test_poisson_noise_grows_with_brightness():
    dark, bright = (np.mean([n.std() for n in noise(NoiseConfig(Drift(0, 0), Drift(1, 1)), value)]) for value in (0.1, 0.9))
    assert bright == pytest.approx(3 * dark, rel=0.1)


# Model-guided


def test_model_guided_starts_at_alpha_and_follows_the_model():
    seen = []

    def velocity(z, sigma):
        seen.append((z, float(sigma)))
        return (z - Z) / sigma  # straight back to the clean latent

    config = ModelGuidedConfig(alpha=(0.3, 0.4), steps=4, shift=3.0)
    out = degrade_latent(Z, Recipe(model_guided=config), velocity, seeded(5))
    torch.testing.assert_close(out, Z, atol=1e-5, rtol=0)
    assert len(seen) == 4
    z, alpha = seen[0]
    assert 0.3 <= alpha <= 0.4
    drawn = (z - (1 - alpha) * Z) / alpha
    assert abs(drawn.std() - 1) < 0.05 and abs(drawn.mean()) < 0.1


def test_model_guided_draws_alpha_from_its_range():
    alphas = []
    for seed in range(50):
        config = ModelGuidedConfig(steps=1)
        degrade_latent(Z[..., :1, :1], Recipe(model_guided=config), lambda z, s: alphas.append(float(s)) or z, seeded(seed))
    assert 0.3 <= min(alphas) < 0.32 and 0.38 < max(alphas) <= 0.4


def test_a_text_to_video_model_changes_the_latent_the_same_way_for_a_seed():
    model = random_weights(SimpleGVRDiT(DiTConfig(in_dim=16, dim=128, ffn_dim=160, num_heads=1, num_layers=1), ATTENTION))

    @torch.inference_mode()
    def velocity(z, sigma):
        return model(z, (1000 * sigma).expand(len(z)), torch.zeros(1, 1, 4096))

    outs = [degrade_latent(Z, RECIPES["model_guided"], velocity, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2], atol=1e-2)
    assert not torch.allclose(outs[0], Z, atol=1e-2)


@pytest.mark.parametrize("alpha", [(0.0, 0.4), (-0.1, 0.4), (0.4, 0.3), (0.3, 1.01)])
def test_alpha_out_of_bounds_is_named(alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha[0]} to {alpha[1]}, wanted .* above 0 and up to 1"):
        ModelGuidedConfig(alpha=alpha)


# Recipes


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_repeat_bit_for_bit_and_leave_their_input(name, film):
    clip, before = film[:, :, :3], film[:, :, :3].clone()
    outs = [degrade_video(clip, 3, RECIPES[name], seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(outs[0], outs[1])
    assert outs[0].shape == (1, 3, 3, 108, 192)
    assert torch.equal(outs[0], outs[2]) == (name in ("area", "model_guided"))
    assert torch.equal(clip, before)


def test_recipes_do_what_their_names_say(film):
    clip = film[:, :, :3]
    outs = {name: degrade_video(clip, 3, recipe, seeded(1)) for name, recipe in RECIPES.items()}
    assert torch.equal(outs["area"], area_downscale(clip, 3))
    assert torch.equal(outs["model_guided"], outs["area"])
    assert torch.equal(outs["flow_based"], outs["aigc"])
    assert torch.equal(outs["flow_based"], degrade(outs["area"], 1))
    for name in ("area", "classical", "flow_based"):
        assert degrade_latent(Z, RECIPES[name], None, seeded(0)) is Z


def test_missing_opencv_is_named_with_its_cure(monkeypatch, film):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert degrade_video(film, 3, RECIPES["area"], seeded(0)).shape[3:] == (108, 192)
    for name in ("classical", "flow_based"):
        with pytest.raises(ImportError, match="pip install opencv-python-headless"):
            degrade_video(film, 3, RECIPES[name], seeded(0))
