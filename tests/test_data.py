"""Video files, color ranges, crops."""

from fractions import Fraction

import av
import pytest
import torch
from conftest import REPO

from simplegvr_core.training.clips import load_clips
from simplegvr_core.video.frames import area_downscale, random_crops, resize_frames, to_images, to_video
from simplegvr_core.video.read import find_videos, read_video
from simplegvr_core.video.write import write_video

DEMO = REPO / "assets" / "demo.mp4"


def test_images_to_video_and_back_is_exact():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3)
    assert torch.equal(to_images(to_video(images)), images)
    assert to_video(images).aminmax() == (-1, 1)


@pytest.mark.parametrize("height, width", [(54, 96), (53, 95)])
def test_written_video_keeps_size_frames_rate_and_looks(tmp_path, height, width):
    images = read_video(DEMO, 5)[0][:, :height, :width]
    write_video(tmp_path / "a.mp4", images, Fraction(24))
    again, rate = read_video(tmp_path / "a.mp4")
    assert again.shape == images.shape
    assert rate == 24
    assert (again.float() - images.float()).abs().mean() < 4


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("height, width", [(32, 224), (31, 223)])
def test_written_colors_are_bt709_of_limited_range(tmp_path, height, width, lossless):
    colors = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [200, 100, 50]])
    images = colors.byte().repeat_interleave(32, 0)[None, None, :width].expand(2, height, -1, -1)
    write_video(tmp_path / "a.mp4", images, Fraction(24), lossless)
    with av.open(tmp_path / "a.mp4") as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        assert codec.pix_fmt == ("yuv444p" if lossless or height % 2 else "yuv420p")
        stored = torch.from_numpy(next(container.decode(video=0)).reformat(format="yuv444p").to_ndarray())[:, height // 2, 16::32]
    red, green, blue = colors.T / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = torch.stack((16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748))
    torch.testing.assert_close(stored.float(), expected, rtol=0, atol=1)
    assert (read_video(tmp_path / "a.mp4")[0][:, height // 2, 16::32].float() - colors).abs().max() <= 3


def test_area_downscale_is_the_mean_of_each_square():
    video = torch.randn(2, 3, 4, 7, 11, generator=torch.Generator().manual_seed(0))
    small = area_downscale(video, 3)
    assert small.shape == (2, 3, 4, 2, 3)
    torch.testing.assert_close(small[1, 2, 3, 1, 2], video[1, 2, 3, 3:6, 6:9].mean())


def test_resizing_treats_every_frame_alone():
    video = torch.randn(1, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_frames(video, (9, 13), "bicubic")[:, :, 2:3], resize_frames(video[:, :, 2:3], (9, 13), "bicubic"))


def test_clips_are_shrunk_and_spaced():
    clips = load_clips(REPO / "assets", num_frames=5, spacing=16, height=54)
    assert [tuple(clip.shape) for clip in clips] == [(5, 54, 96, 3)] * 4  # two files of 33 frames, at 0 and 16; 32 is too short


def test_crops_repeat_with_their_seed():
    clips = load_clips(REPO / "assets", num_frames=9, spacing=16, height=108)
    draw = [random_crops(clips, batch=3, num_frames=5, size=32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draw[0].shape == (3, 3, 5, 32, 32)
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_clips_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="spacing is 4 frames, wanted at least the 5"):
        load_clips(REPO / "assets", num_frames=5, spacing=4, height=54)
    with pytest.raises(ValueError, match="has 99 frames: use longer videos"):
        load_clips(REPO / "assets", num_frames=99, spacing=99, height=54)
    clips = load_clips(REPO / "assets", num_frames=5, spacing=33, height=54)
    with pytest.raises(ValueError, match="a clip has 5 frames of 96 x 54, the crops want 5 of 64 x 64"):
        random_crops(clips, batch=1, num_frames=5, size=64, generator=torch.Generator().manual_seed(0))


def test_a_folder_without_video_is_named(tmp_path):
    with pytest.raises(ValueError, match="contains no video"):
        find_videos(tmp_path)
