"""Videos that other programs make: read as players show them, converted with a word, or refused by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from conftest import REPO
from test_bad_videos import encode
from test_pairs import build, footage, models  # noqa: F401 (fixtures)

from simplegvr_core.video.normalize import normalize_video, read_sound
from simplegvr_core.video.read import VideoError, inspect_video, read_frames, read_video

FOLDER = REPO.parent / "shared" / "data" / "bugs"


def strange(name: str) -> Path:
    if not (FOLDER / name).exists():
        pytest.skip(f"{name} is not here")
    return FOLDER / name


def test_notes_say_what_is_converted():
    notes = {
        path.name: inspect_video(path)[1]
        for path in sorted(strange("plain.mp4").parent.glob("*.m*"))
        if "unknown" not in path.name and path.suffix != ".md"
    }
    assert notes == {
        "audio_40000.mkv": [],
        "editlist.mp4": ["2 frames are missing: those after them come too early"],
        "full709.mp4": [],
        "gray.mkv": [],
        "hdr_pq.mp4": ["HDR (PQ): tone mapped to BT.709", "10 bits a channel: decoded to 8"],
        "lim601.mp4": [],
        "plain.mp4": [],
        "rot90.mp4": [],
        "sar.mp4": ["pixels of 64/45: made square, 96 x 64 became 136 wide"],
        "vfr.mp4": ["variable frame rate: frames are taken in order, whatever their times"],
    }
    assert inspect_video(strange("alpha.webm"))[1] == ["transparency: dropped, the colors are kept as they are"]


def test_pixels_become_square(tmp_path):
    encode(tmp_path / "wide.mp4", footage(3), "libx264", "yuv420p", crf="8")
    with av.open(tmp_path / "wide.mp4") as source, av.open(tmp_path / "sar.mp4", "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        stream.sample_aspect_ratio = 2
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    height, width = footage(3).shape[1:3]
    images = read_video(tmp_path / "sar.mp4")[0]
    assert images.shape == (3, height, 2 * width, 3)
    narrow = torch.nn.functional.avg_pool2d(images.float().permute(0, 3, 1, 2), (1, 2)).permute(0, 2, 3, 1)
    assert (narrow - read_video(tmp_path / "wide.mp4")[0].float()).abs().mean() < 8


def test_interlaced_untagged_and_missing_are_said(tmp_path):
    encode(tmp_path / "fields.mp4", footage(3), "libx264", "yuv420p", flags="+ilme+ildct", **{"x264-params": "tff=1"})
    assert inspect_video(tmp_path / "fields.mp4")[1] == ["interlaced: both fields are kept in a frame"]
    encode(tmp_path / "hd.mp4", footage(1, 720, 64).repeat(3, 1, 1, 1), "libx264", "yuv420p")
    assert inspect_video(tmp_path / "hd.mp4")[1] == ["no color matrix is tagged: read as BT.601"]
    encode(tmp_path / "gap.mp4", footage(9), "libx264", "yuv420p", [0, 1, 2, 3, 5, 6, 7, 8, 9])
    assert inspect_video(tmp_path / "gap.mp4")[1] == ["1 frames are missing: those after them come too early"]


def test_a_picture_attached_to_the_file_is_not_the_video(tmp_path):
    encode(tmp_path / "plain.mp4", footage(5), "libx264", "yuv420p")
    with av.open(tmp_path / "cover.mp4", "w") as out, av.open(tmp_path / "plain.mp4") as source:
        cover = out.add_stream("mjpeg", rate=24)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = out.add_stream_from_template(source.streams.video[0])
        out.mux(cover.encode(av.VideoFrame.from_ndarray(footage(1, 32, 32)[0].numpy(), format="rgb24").reformat(format="yuvj420p")))
        out.mux(cover.encode())
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
    assert inspect_video(tmp_path / "cover.mp4")[0] == 5
    assert torch.equal(read_video(tmp_path / "cover.mp4")[0], read_video(tmp_path / "plain.mp4")[0])


def test_a_file_without_a_decoder_is_skipped_and_listed(build):  # noqa: F811
    import json

    shutil.copy(strange("unknown_codec.mp4"), build.videos / "unknown.mp4")
    assert build.run()["pairs"] == 5
    skipped = json.loads((build.out / "report.json").read_text())["skipped_files"]
    assert skipped["unknown.mp4"]["reason"] == "unreadable"
    assert "no decoder is known for its video" in skipped["unknown.mp4"]["detail"]


def test_a_video_that_changes_its_size_is_named(tmp_path):
    with av.open(tmp_path / "sizes.mjpeg", "w", format="mjpeg") as out:
        stream = out.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(footage(1, 64, 64)[0].numpy(), format="rgb24").reformat(format="yuvj420p")))
        out.mux(stream.encode())
    with av.open(tmp_path / "other.mjpeg", "w", format="mjpeg") as out:
        stream = out.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 48, "yuvj420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(footage(1, 48, 32)[0].numpy(), format="rgb24").reformat(format="yuvj420p")))
        out.mux(stream.encode())
    joined = tmp_path / "joined.mjpeg"
    joined.write_bytes((tmp_path / "sizes.mjpeg").read_bytes() + (tmp_path / "other.mjpeg").read_bytes())
    with pytest.raises(VideoError, match=r"joined\.mjpeg changes its size in frame 1: convert it to one size"):
        list(read_frames(joined))


@pytest.mark.parametrize("name", ["vfr.mp4", "sar.mp4", "hdr_pq.mp4", "editlist.mp4"])
def test_a_normalized_video_has_nothing_to_say_and_keeps_its_times(tmp_path, name):
    path, out = strange(name), tmp_path / "out.mp4"
    normalize_video(path, out)
    assert inspect_video(out)[1] == []
    images, rate = read_video(out)
    with av.open(path) as container:
        frames = [frame.time for frame in container.decode(video=0)]
    assert len(images) == round((frames[-1] - frames[0]) * rate) + 1
    sound = read_sound(path)
    if sound is not None:
        kept = read_sound(out)
        assert kept is not None
        assert abs(kept.waveform.shape[1] / kept.rate - sound.waveform.shape[1] / sound.rate) < 0.1


@pytest.mark.parametrize(("input", "out", "message"), [
    ("unknown_codec.mp4", "out", "no decoder is known for its video"),
    ("plain.mp4", "plain.mp4", "is a file, wanted a folder: choose another"),
])  # fmt: skip
def test_the_demo_refuses_before_all_the_work(tmp_path, input, out, message):
    shutil.copy(strange(input), tmp_path / input)
    command = [sys.executable, REPO / "scripts" / "demo.py", tmp_path / input, "--out", tmp_path / out]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "starting ComfyUI" not in ran.stderr


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: bytes(len(data)), lambda data: data[: len(data) // 2]])
def test_a_damaged_shard_is_made_again(build, damage):  # noqa: F811
    build.run()
    shard = build.out / "shard_00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(damage(whole))
    build.run()
    assert shard.read_bytes() == whole


def test_damaged_options_of_a_folder_of_pairs_are_named(build):  # noqa: F811
    build.run()
    (build.out / "build.json").write_text("")
    with pytest.raises(ValueError, match=r"build\.json is damaged .*: delete it if the options are those that .* was begun with"):
        build.run()
