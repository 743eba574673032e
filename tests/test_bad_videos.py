"""Files as they come: damaged, short, odd, of changing rate, of more than 8 bits. Each is a real file, made here."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_pairs import build, footage, models  # noqa: F401 (fixtures)

from simplegvr_core.training.clips import ClipReader, load_clips, survey
from simplegvr_core.training.filters import Drop
from simplegvr_core.training.pairs import Pairs
from simplegvr_core.video.read import inspect_video, read_video
from simplegvr_core.video.write import write_video

PQ = "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"


def encode(
    path: Path, images: torch.Tensor, codec: str, pix_fmt: str, times: list[int] | None = None, container: dict | None = None, **options
):
    """Writes images (F, H, W, 3) uint8; times: of each frame in 1/24 s."""
    path.parent.mkdir(exist_ok=True)
    with av.open(path, "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=24, options=options)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, Fraction(1, 24)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image.numpy(), format="rgb24")
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def test_files_that_are_no_use_are_skipped_and_listed(build):  # noqa: F811
    videos = build.videos
    whole = (videos / "a.mp4").read_bytes()
    (videos / "half.mp4").write_bytes(whole[: len(whole) // 2])
    encode(videos / "stream.mp4", footage(17), "libx264", "yuv420p", container={"movflags": "faststart"})
    (videos / "half_stream.mp4").write_bytes((videos / "stream.mp4").read_bytes()[:-500])
    (videos / "stream.mp4").unlink()
    (videos / "empty.mp4").touch()
    (videos / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(3000))
    Image.fromarray(footage(1)[0].numpy()).save(videos / "still.png")
    Image.fromarray(footage(1)[0].numpy()).save(videos / "still.mp4", format="PNG")
    with av.open(videos / "sound.mp4", "w") as file:
        stream = file.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    write_video(videos / "one.mp4", footage(1), Fraction(24))
    write_video(videos / "short.mp4", footage(4), Fraction(24))
    summary = build.run()
    assert summary["pairs"] == 5
    skipped = json.loads((build.out / "report.json").read_text())["skipped_files"]
    assert {name: entry["reason"] for name, entry in skipped.items()} == {
        **dict.fromkeys(("half.mp4", "half_stream.mp4", "empty.mp4", "noise.mkv", "sound.mp4"), "unreadable"),
        **dict.fromkeys(("one.mp4", "short.mp4", "still.mp4"), "too short"),
        "still.png": "not a video",
    }
    assert "ends early" in skipped["half_stream.mp4"]["detail"]
    assert skipped["short.mp4"]["detail"] == "4 frames, a clip takes 5"


def test_a_folder_of_useless_files_is_an_error_with_a_report(build):  # noqa: F811
    for path in (build.videos / "a.mp4", build.videos / "below" / "b.mp4"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"no clip of .* became a pair: .*report\.json has the reason of each.*'unreadable': 2"):
        build.run()
    assert set(json.loads((build.out / "report.json").read_text())["skipped_files"]) == {"a.mp4", "below/b.mp4"}


def test_a_video_damaged_within_is_used_up_to_there(tmp_path):
    """Its packets are all there, so only decoding shows it."""
    encode(tmp_path / "a.avi", footage(60), "mpeg4", "yuv420p", b="2000k", g="5")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    for place in range(len(data) // 2, len(data) * 3 // 4, 997):
        data[place] ^= 0xFF
    (tmp_path / "a.avi").write_bytes(data)
    assert inspect_video(tmp_path / "a.avi")[0] == 60
    clips = list(ClipReader(tmp_path, 5, 64).read(survey(tmp_path, 5).starts(5, 5)))
    assert [clip.frame for clip in clips] == list(range(0, 60, 5))
    damaged = [isinstance(clip.images, Drop) for clip in clips]
    assert damaged == sorted(damaged)
    assert 3 <= damaged.count(True) <= 9
    assert clips[-1].images.reason == "unreadable"
    assert "is damaged in frame" in clips[-1].images.detail
    with pytest.raises(ValueError, match=r"a\.avi is damaged in frame \d+: take it out of"):
        load_clips(tmp_path, 5, 5, 64)
    (tmp_path / "a.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a\.avi ends early.*: take it out of"):
        load_clips(tmp_path, 5, 5, 64)


def test_variable_frame_rate_is_noted_and_read_in_order(build):  # noqa: F811
    times = [0, 1, 2, 6, 7, 8, 20, 21, 22, 23]
    encode(build.videos / "vfr.mp4", footage(10, seed=5), "libx264", "yuv420p", times, crf="8")
    assert build.run()["pairs"] == 7
    assert json.loads((build.out / "report.json").read_text())["notes"] == {
        "vfr.mp4": ["variable frame rate: frames are taken in order, whatever their times"]
    }
    images = read_video(build.videos / "vfr.mp4")[0]
    assert (images.float() - footage(10, seed=5)).abs().mean() < 8


def test_odd_sizes_are_cut_to_whole_cells(build):  # noqa: F811
    write_video(build.videos / "odd.mp4", footage(5, 61, 87, seed=6), Fraction(24))
    write_video(build.videos / "tiny.mp4", footage(5, 15, 40, seed=6), Fraction(24))
    assert build.run()["dropped"] == {"too small": 1}
    pairs = Pairs(build.out)
    i = next(i for i, entry in enumerate(pairs.entries) if entry["video"] == "odd.mp4")
    assert pairs[i][1].shape == {2: (16, 2, 6, 10), 3: (16, 2, 6, 9)}[pairs.scales[i]]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_ten_bits_are_decoded_to_eight(build, codec):  # noqa: F811
    path = build.videos / "ten.mp4"
    encode(path, footage(5), codec, "yuv420p10le", crf="8", **({"x265-params": "log-level=none"} if codec == "libx265" else {}))
    build.run()
    assert json.loads((build.out / "report.json").read_text())["notes"] == {"ten.mp4": ["10 bits a channel: decoded to 8"]}
    images = read_video(path)[0]
    assert images.dtype == torch.uint8
    assert (images.float() - footage(5)).abs().mean() < 8


def test_hdr_is_tone_mapped(build):  # noqa: F811
    """Gray bars of 100 and 1000 nits by PQ: the first is near the middle of a screen's range, the second is not clipped."""
    bars = torch.tensor([51, 130, 191], dtype=torch.uint8).repeat_interleave(32).view(1, 1, 96, 1).expand(5, 64, 96, 3)
    path = build.videos / "hdr.mp4"
    encode(path, bars, "libx265", "yuv420p10le", **{"x265-params": PQ})
    found = survey(build.videos, 5)
    assert found.notes == {"hdr.mp4": ["HDR (PQ): tone mapped to BT.709", "10 bits a channel: decoded to 8"]}
    dark, middle, bright = read_video(path)[0][2, 32, [16, 48, 80]].float()
    assert (dark < 40).all()
    assert ((middle > 110) & (middle < 150)).all()
    assert ((bright > 195) & (bright < 250)).all()
