"""Pairs made while training: crops of photographs in motion and of video, their low resolution, and what footage is refused."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from sources import no_noise
from test_pairs import footage

from simplegvr_core.files import GVR_TINY_VAE
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.training.batches import Crop, NoisedPairs
from simplegvr_core.training.draws import Draws
from simplegvr_core.training.loss import Pictures
from simplegvr_core.training.online_pairs import OnlinePairs
from simplegvr_core.training.reader import Batches, Reader
from simplegvr_core.video.write import write_video

pytestmark = pytest.mark.usefixtures("one_thread")
CROP = Crop(num_frames=5, size=(6, 6), batch=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_photograph(path, image: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def ramp(height: int = 200, width: int = 240) -> np.ndarray:
    """A photograph whose red is its column, green its row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of a photograph that is a ramp."""
    folder = tmp_path_factory.mktemp("footage")
    write_photograph(folder / "photos" / "ramp.png", ramp())
    return OnlinePairs([folder], load_tiny_vae(GVR_TINY_VAE), CROP)


def test_a_camera_over_a_ramp_sees_straight_lines_that_move(pairs):
    """In the middle frame nothing is turned or zoomed: red rises along rows, green along columns, by the photograph's reduction alone."""
    for seed in range(5):
        crop = pairs.photograph_in_motion(generator(seed)).astype(float)
        assert crop.shape == (5, 48, 48, 3)
        middle = crop[2, 12:36, 12:36]
        slopes = np.diff(middle[..., 0], axis=1).mean(), np.diff(middle[..., 1], axis=0).mean()
        assert slopes[0] == pytest.approx(slopes[1], rel=0.05) and slopes[0] >= 1.35
        assert np.abs(np.diff(middle[..., 0], axis=0)).max() <= 1
        steps = np.diff(crop[:, 12:36, 12:36, :2].mean((1, 2)), axis=0)
        assert np.abs(steps).max() <= 24 * slopes[0] + 1


def test_crops_follow_from_the_generator_alone(pairs):
    first, again, other = (pairs.sample_crop(generator(seed)) for seed in (3, 3, 4))
    assert first.dtype == np.uint8 and first.shape == (5, 48, 48, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_pair_is_the_encoded_crop_and_the_encoded_small_one(pairs):
    sampled = []
    for step in range(6):
        draws = Draws(0, step, range(3), 3)
        sampled.append(pairs.pairs_of(pairs.read(draws, 7), draws))
    sides = {batch["z_lr"].shape[-1] for batch in sampled}
    assert len(sides) > 1 and sides <= {2, 3, 4}  # ratios from 1.5 to 4
    for batch in sampled:
        assert batch["z_hr"].shape == (3, 16, 2, 6, 6) and batch["z_lr"].shape[:3] == (3, 16, 2) and batch["context"].shape == (3, 1, 7)
        low, high = (pairs.vae.linear_decode(batch[name]).mean((2, 3, 4)) for name in ("z_lr", "z_hr"))
        torch.testing.assert_close(low, high, atol=0.05, rtol=0.05)  # of one picture


def test_workers_make_the_crops_that_the_training_process_makes(pairs):
    """The footage is in shared memory, and the samples of two processes are those of one."""
    source = NoisedPairs(pairs, 7, no_noise)

    def batches(workers: int, process: int = 0, processes: int = 1) -> list[dict[str, torch.Tensor]]:
        reader = Reader(source, torch.device("cpu"), seed=5, accumulate=1, process=process, processes=processes)
        return [next(reading) for reading in [Batches(reader, range(2), workers)] for _ in range(2)]

    alone, ahead, parts = batches(0), batches(1), [batches(0, process, 3) for process in range(3)]
    for step, batch in enumerate(alone):
        for name, tensor in batch.items():
            torch.testing.assert_close(ahead[step][name], tensor)
            torch.testing.assert_close(torch.cat([part[step][name] for part in parts]), tensor)


def test_video_gives_crops_of_its_own_size_and_smaller(tmp_path):
    write_video(tmp_path / "a.mp4", footage(5, 96, 128), Fraction(24))
    pairs = OnlinePairs([tmp_path], load_tiny_vae(GVR_TINY_VAE), CROP)
    assert not pairs.photographs and len(pairs.clips) == 1
    crops = [pairs.crop_of_clip(generator(seed)) for seed in range(4)]
    assert all(crop.shape == (5, 48, 48, 3) for crop in crops) and not np.array_equal(crops[0], crops[1])


def test_footage_that_cannot_be_used_is_named(tmp_path):
    vae = load_tiny_vae(GVR_TINY_VAE)
    with pytest.raises(ValueError, match="has no video and no photograph of 96 pixels"):
        OnlinePairs([tmp_path], vae, CROP)
    with pytest.raises(ValueError, match=r"--crop.size is \(6, 9\)"):
        OnlinePairs([tmp_path], vae, Crop(num_frames=5, size=(6, 9), batch=1))
    write_video(tmp_path / "small.mp4", footage(5, 40, 96), Fraction(24))
    with pytest.raises(ValueError, match="less than 48 pixels a side"):
        OnlinePairs([tmp_path], vae, CROP)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg is not a picture"):
        OnlinePairs([tmp_path], vae, CROP)


def test_noise_counts_where_the_target_is_flat_alone():
    """Left half flat, right half a texture of 40 levels; noise of 2 levels on either half."""
    noise = torch.randn(1, 3, 2, 40, 64, generator=generator()) * 2 / 127.5
    target = torch.zeros(1, 3, 2, 40, 64)
    target[..., 32:] = torch.randn(1, 3, 2, 40, 32, generator=generator(1)).clamp(-2, 2) * 40 / 127.5
    on_flat, on_texture = noise.clone(), noise.clone()
    on_flat[..., 24:], on_texture[..., :40] = 0, 0
    pictures = Pictures(None, perceptual=False)
    errors = [pictures.flat_error(target + x, target).item() for x in (torch.zeros_like(noise), on_flat, on_texture)]
    assert errors[0] == 0 and errors[1] > 0.001 and errors[2] < 0.05 * errors[1]
