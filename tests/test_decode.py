"""SimpleGVR Decode and Save: what it writes is what the stock nodes decode, however the work is cut, stopped or resumed."""

import asyncio
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import psutil
import pytest
import torch
from client import output_files, run_workflow
from conftest import REPO
from torch import Tensor

from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.planning.tensor_memory import peak_bytes
from simplegvr_core.video.decode import StreamDecoder, decode_to_parts, resume, tiles_of_frame
from simplegvr_core.video.read import read_video
from simplegvr_core.video.write import Encoding, join

CELLS = (5, 7)  # rows, columns of the small latents
TRIM_NONE = {"trim": "none"}


def latent(frames: int, size=CELLS, batch=1, seed=0) -> dict:
    """Returns a LATENT that is smooth along time, as of a video."""
    noise = torch.randn(batch, 16, frames, *size, generator=torch.Generator().manual_seed(seed))
    return {"samples": noise.cumsum(2) / torch.arange(1, frames + 1).sqrt().view(-1, 1, 1)}


@pytest.fixture(scope="module")
def tiny(comfy):
    return comfy.run("SimpleGVRLoadTinyVAE", vae_name="gvr_tiny_vae.safetensors")[0]


@pytest.fixture(scope="module")
def wan(comfy):
    """A real Wan 2.1 VAE, but narrow and with random weights."""
    import comfy.ldm.wan.vae
    import comfy.sd

    sides = {"z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True]}
    network = comfy.ldm.wan.vae.WanVAE(dim=8, **sides, image_channels=3, conv_out_channels=3)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            torch.nn.init.zeros_(parameter)
    return comfy.sd.VAE(sd=network.state_dict(), dtype=torch.float32)


@pytest.fixture(params=["tiny", "wan"])
def vae(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def output(comfy, tmp_path, monkeypatch):
    """The output folder, empty; the temp folder is beside it."""
    import folder_paths

    for name in ("output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path / "output"


@pytest.fixture
def module(comfy):
    """The node's module."""
    return sys.modules[comfy.nodes["SimpleGVRDecodeSave"].__module__]


@pytest.fixture
def frames_seen(comfy, monkeypatch):
    """The video of each chunk, (3, f, H, W), as it came out of the decoder."""
    core = sys.modules[sys.modules[comfy.nodes["SimpleGVRDecodeSave"].__module__].StreamDecoder.__module__]
    seen, call = [], core.StreamDecoder.__call__

    def recorded(self, z):
        seen.append(call(self, z)[0])
        return seen[-1][None]

    monkeypatch.setattr(core.StreamDecoder, "__call__", recorded)
    return seen


@pytest.fixture
def save(comfy, output):
    """Runs the node; returns the paths of its files and its report."""

    def run(vae, latent, **changes):
        inputs = {"fps": 24.0, "filename_prefix": "video/test", "trim": TRIM_NONE, "crf": 10.0, "resume": False}
        videos, report = comfy.run("SimpleGVRDecodeSave", vae=vae, latent=latent, **{**inputs, **changes})
        return [REPO / video.get_stream_source() for video in videos], report

    return run


def stock(vae, latent: dict) -> Tensor:
    """Returns what the stock VAE Decode gives, (B, F, H, W, 3) in [0, 1]."""
    with torch.inference_mode():
        return vae.decode(latent["samples"])


def as_images(vae, frames_seen: list[Tensor]) -> Tensor:
    return vae.process_output(torch.cat(frames_seen, 1).clone()).movedim(0, -1)


def psnr(images: Tensor, other: Tensor) -> float:
    return -10 * math.log10(float((images.float() - other.float()).square().mean()))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_frames_are_those_of_the_stock_decode(vae, wan, save, frames_seen, frames):
    save(vae, latent(frames))
    out, expected = as_images(vae, frames_seen), stock(vae, latent(frames))[0]
    if vae is wan:
        assert torch.equal(out, expected)
    else:
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_file_shows_the_frames_of_the_stock_decode(tiny, save, frames):
    (path,), report = save(tiny, latent(frames), crf=1.0)
    images, rate = read_video(path)
    expected = stock(tiny, latent(frames))[0]
    assert rate == 24
    assert images.shape == expected.shape == (4 * frames - 3, 40, 56, 3)
    assert psnr(images / 255, expected) > 35  # colors are stored for four pixels at once
    assert psnr(images.float().mean(3) / 255, expected.mean(3)) > 42
    assert f"{path.name}: {4 * frames - 3} frames of 56 x 40, 24 a second" in report


def test_colors_are_marked_as_bt709(tiny, save):
    with av.open(save(tiny, latent(1))[0][0]) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)


def test_trim_gives_the_frames_and_size_of_the_source_and_says_what_was_made_even(tiny, save):
    trim = {"trim": "custom", "frames": 7, "width": 53, "height": 0}
    (path,), report = save(tiny, latent(3), trim=trim, crf=1.0)
    images, _ = read_video(path)
    assert images.shape == (7, 40, 52, 3)
    assert "53 x 40 became 52 x 40" in report
    assert psnr(images / 255, stock(tiny, latent(3))[0, :7, :, :52]) > 35


@pytest.mark.parametrize("trim", [{"frames": 10, "width": 0, "height": 0}, {"frames": 0, "width": 57, "height": 0}])
def test_trim_refuses_more_than_there_is(tiny, save, trim):
    with pytest.raises(ValueError, match=r"trim asks for .*, but the latent holds 9 of 56 x 40"):
        save(tiny, latent(3), trim={"trim": "custom", **trim})


def test_each_of_a_batch_becomes_a_file(tiny, save):
    paths, _ = save(tiny, latent(2, batch=2), crf=1.0)
    assert [path.name for path in paths] == ["test_00001_.mp4", "test_00002_.mp4"]
    for path, expected in zip(paths, stock(tiny, latent(2, batch=2)), strict=True):
        assert psnr(read_video(path)[0] / 255, expected) > 35


def test_files_are_numbered_and_none_is_written_over(tiny, save, output):
    save(tiny, latent(1))
    save(tiny, latent(1, seed=1))
    assert sorted(path.name for path in (output / "video").iterdir()) == ["test_00001_.mp4", "test_00002_.mp4"]


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_audio_is_as_long_as_the_video(tiny, save, channels):
    seconds = torch.arange(3 * 32000) / 32000
    waveform = 0.5 * (2 * math.pi * 440 * seconds).sin().expand(1, channels, -1)
    (path,), _ = save(tiny, latent(5), fps=17.0, audio={"waveform": waveform, "sample_rate": 32000})
    with av.open(path) as container:
        sound = torch.cat([torch.from_numpy(frame.to_ndarray()) for frame in container.decode(audio=0)], dim=1)
    assert len(sound) == channels
    assert 32000 <= sound.shape[1] < 32000 + 1024  # 17 frames, in blocks of 1024 samples
    spectrum = torch.fft.rfft(sound[0, :32000]).abs()
    assert abs(int(spectrum.argmax()) - 440) <= 1


def test_a_sound_of_many_channels_is_refused(tiny, save, frames_seen):
    audio = {"waveform": torch.zeros(1, 5, 9000), "sample_rate": 32000}
    with pytest.raises(ValueError, match="the audio has 5 channels, wanted one of 1, 2, 6, 8"):
        save(tiny, latent(1), audio=audio)
    assert not frames_seen


def test_the_workflow_is_in_the_file(comfy, tiny, output):
    node = comfy.nodes["SimpleGVRDecodeSave"]
    from comfy_api.latest import io

    hidden = {io.Hidden.prompt: {"1": {"class_type": "Test"}}, io.Hidden.extra_pnginfo: {"workflow": {"nodes": []}}}
    with torch.inference_mode():
        node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden}).execute(
            vae=tiny, latent=latent(1), fps=24.0, filename_prefix="a/b", trim=TRIM_NONE, crf=10.0, resume=False
        )
    with av.open(output / "a" / "b_00001_.mp4") as container:
        assert json.loads(container.metadata["prompt"]) == {"1": {"class_type": "Test"}}
        assert json.loads(container.metadata["workflow"]) == {"nodes": []}


def test_a_file_that_may_not_be_written_is_refused_before_the_work(tiny, save, frames_seen):
    with pytest.raises(Exception, match="outside the output folder"):
        save(tiny, latent(1), filename_prefix="../outside")
    assert not frames_seen


# Bad input


def test_another_vae_is_refused_by_name(save):
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    network = TAESD(latent_channels=4)
    with pytest.raises(ValueError, match=r"the VAE is a TAESD, .*wan_2\.1_vae\.safetensors"):
        save(comfy.sd.VAE(sd=network.state_dict()), latent(1))


@pytest.mark.parametrize("shape", [(16, 3, 5, 7), (1, 48, 3, 5, 7)])
def test_another_latent_is_refused(tiny, save, shape):
    with pytest.raises(ValueError, match="wanted \\(batch, 16, frames, height, width\\)"):
        save(tiny, {"samples": torch.zeros(shape)})


def test_nan_is_found_where_it_is(tiny, save, output):
    bad = latent(5)
    bad["samples"][0, 3, 3, 2, 2] = torch.nan
    with pytest.raises(ValueError, match="latent frame 3 contains NaN"):
        save(tiny, bad)
    assert not [path for path in output.parent.rglob("*") if path.is_file()]


# Interrupts and resuming


@pytest.fixture
def short_parts(module, monkeypatch):
    """Parts of one chunk."""
    monkeypatch.setattr(module, "PART_LENGTH", 1)


@pytest.fixture
def stop(comfy, monkeypatch):
    """stop(latent frame, error) makes the next run stop there as the server does, through the progress bar."""
    import comfy.utils

    def at(frame: int, error: BaseException):
        def hook(value, *_, **__):
            if value == frame:
                monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
                raise error

        monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)

    return at


def interrupted() -> BaseException:
    from comfy.model_management import InterruptProcessingException

    return InterruptProcessingException()


def files(folder) -> list:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [interrupted, lambda: RuntimeError("broken")])
def test_without_resume_nothing_is_left(tiny, save, stop, output, error):
    error = error()
    stop(3, error)
    with pytest.raises(type(error)):
        save(tiny, latent(5))
    assert not files(output.parent)


LOSSLESS = {"crf": 0.0, "resume": True}  # other encodings of the same frames may differ in a bit, x264 is not that strict


@pytest.mark.parametrize("frame", [1, 3, 5, 7])
def test_a_stopped_run_goes_on_and_gives_the_same_frames(vae, save, stop, output, short_parts, frames_seen, frame):
    whole, _ = read_video(save(vae, latent(7), **LOSSLESS)[0][0])
    expected = as_images(vae, frames_seen)
    frames_seen.clear()
    stop(frame, interrupted())
    with pytest.raises(type(interrupted())):
        save(vae, latent(7), **LOSSLESS, filename_prefix="video/again")
    assert not list((output / "video").glob("again*"))
    frames_seen.pop()  # of the chunk that was stopped
    (path,), report = save(vae, latent(7), **LOSSLESS, filename_prefix="video/again")
    assert (f"Resumed at frame {4 * frame - 11} " in report) == (frame > 1)
    assert torch.equal(as_images(vae, frames_seen), expected)
    assert torch.equal(read_video(path)[0], whole)
    assert not (output / "simplegvr_resume").exists()


def test_a_run_that_goes_on_reports_the_tiles_that_it_really_used(tiny, save, stop, short_parts, little_memory):
    """Those of the run that was stopped, whatever would fit now."""
    little_memory(tiny, 0.45)
    stop(5, interrupted())
    with pytest.raises(type(interrupted())):
        save(tiny, latent(7, WIDE), **LOSSLESS)
    little_memory(tiny, 2)
    _, report = save(tiny, latent(7, WIDE), **LOSSLESS)
    assert "Resumed at frame" in report
    assert "are free" not in report
    assert "Decoded in 4 tiles." in report


def test_what_was_finished_of_a_batch_is_not_decoded_again(tiny, save, stop, short_parts, frames_seen, output):
    whole = [read_video(path)[0] for path in save(tiny, latent(5, batch=2), **LOSSLESS)[0]]
    stop(5 + 3, interrupted())
    with pytest.raises(type(interrupted())):
        save(tiny, latent(5, batch=2), **LOSSLESS, filename_prefix="again")
    assert not list(output.glob("again*"))
    frames_seen.clear()
    paths, report = save(tiny, latent(5, batch=2), **LOSSLESS, filename_prefix="again")
    assert len(frames_seen) == 2  # of the second clip's three chunks
    assert report.count("Resumed at frame 1 ") == 1
    assert all(torch.equal(read_video(path)[0], frames) for path, frames in zip(paths, whole, strict=True))


def test_a_run_killed_between_a_part_and_its_progress_goes_on(tiny, save, short_parts, module, monkeypatch, output):
    core = sys.modules[module.decode_to_parts.__module__]
    whole, _ = read_video(save(tiny, latent(5), **LOSSLESS)[0][0])
    real = core.save_progress

    def killed(folder, parts, tiles):
        if len(parts) == 2:
            raise KeyboardInterrupt
        real(folder, parts, tiles)

    monkeypatch.setattr(core, "save_progress", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tiny, latent(5), **LOSSLESS)
    unfinished = next((output / "simplegvr_resume").iterdir()) / "000"
    assert {path.name for path in unfinished.iterdir()} == {"part_00000.mp4", "part_00001.mp4", "progress_odd.safetensors"}
    (unfinished / "part_00002.partial.mp4").write_bytes(b"half")
    monkeypatch.setattr(core, "save_progress", real)
    assert torch.equal(read_video(save(tiny, latent(5), **LOSSLESS)[0][0])[0], whole)
    assert not (output / "simplegvr_resume").exists()


def test_progress_without_its_parts_begins_anew(tiny, save, stop, short_parts, output):
    whole = read_video(save(tiny, latent(5), **LOSSLESS)[0][0])[0]
    error = interrupted()
    stop(3, error)
    with pytest.raises(type(error)):
        save(tiny, latent(5), **LOSSLESS)
    next((output / "simplegvr_resume").rglob("part_00000.mp4")).unlink()
    assert torch.equal(read_video(save(tiny, latent(5), **LOSSLESS)[0][0])[0], whole)


def test_a_killed_process_leaves_parts_that_another_goes_on_from(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(str(REPO / folder) for folder in (".", "tools", "tests"))}
    killed = subprocess.run([sys.executable, __file__, str(tmp_path)], env=env, check=False)
    assert killed.returncode not in (0, 1)  # neither done nor failed
    path, went_on = decode_in_parts(tmp_path, lambda latent_frames: None)
    assert went_on == 3  # chunks of 1, 2 and 2 latent frames were whole, that of the next 2 was not
    unbroken, _ = decode_in_parts(tmp_path / "unbroken", lambda latent_frames: None)
    assert torch.equal(read_video(path)[0], read_video(unbroken)[0])


TINY_VAE = REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors"


@torch.inference_mode()
def decode_in_parts(folder: Path, on_latent_frames) -> tuple[Path, int]:
    """Decodes without ComfyUI; returns the file, and how many parts were there before."""
    decoder = StreamDecoder(load_tiny_vae(TINY_VAE).decode_chunk, tiles_of_frame((3, 5), lambda height, width: True), lambda error: False)
    there = len(resume(folder / "parts", decoder))
    encoding = Encoding(40, 24, Fraction(24), 0.0)
    z = latent(9, (3, 5))["samples"]
    parts = decode_to_parts(
        z,
        decoder,
        frames=33,
        encoding=encoding,
        folder=folder / "parts",
        part_length=1,
        on_chunk=lambda start, stop: on_latent_frames(stop),
    )
    join(folder / "out.mp4", parts, encoding.rate)
    return folder / "out.mp4", there


@pytest.mark.parametrize(
    "changes",
    [{"latent": latent(5, seed=1)}, {"crf": 11.0}, {"fps": 25.0}, {"trim": {"trim": "custom", "frames": 16, "width": 0, "height": 0}}],
)
def test_another_latent_or_setting_does_not_go_on(tiny, save, stop, output, short_parts, changes):
    stop(3, interrupted())
    with pytest.raises(type(interrupted())):
        save(tiny, latent(5), resume=True)
    _, report = save(tiny, **{"latent": latent(5), **changes}, resume=True)
    assert "Resumed" not in report
    assert len(list((output / "simplegvr_resume").iterdir())) == 1


def test_another_vae_does_not_go_on(tiny, wan, save, stop, short_parts):
    stop(3, interrupted())
    with pytest.raises(type(interrupted())):
        save(tiny, latent(5), resume=True)
    assert "Resumed" not in save(wan, latent(5), resume=True)[1]


# Tiles and memory

WIDE = (3, 41)  # cells; cut once it is 24 and 25, cut again 16 and 16 of 24, 16 and 17 of 25


@pytest.fixture
def little_memory(monkeypatch):
    """Makes a VAE believe that a share of what it needs for a whole frame is free."""

    def set_free(vae, share: float):
        needed = vae.memory_used_decode((1, 16, 3, *WIDE), vae.vae_dtype)
        monkeypatch.setattr(vae.patcher, "get_free_memory", lambda device: share * needed)

    return set_free


@pytest.mark.parametrize("share, tiles", [(0.45, 2), (0.3, 4)])
def test_tiles_are_close_to_the_whole(tiny, save, frames_seen, little_memory, share, tiles):
    expected = stock(tiny, latent(3, WIDE))[0]
    little_memory(tiny, share)
    _, report = save(tiny, latent(3, WIDE))
    assert "are free: it is decoded in tiles." in report
    assert f"Decoded in {tiles} tiles." in report
    assert psnr(as_images(tiny, frames_seen), expected) > 60


def test_tiles_of_wans_vae_are_as_close_to_the_whole_as_stock_tiles_are(wan, save, frames_seen, little_memory):
    """With random weights that is not close: its attention sees the whole frame, and nothing has taught it to look near."""
    expected = stock(wan, latent(3, WIDE))[0]
    little_memory(wan, 0.45)
    save(wan, latent(3, WIDE))
    with torch.inference_mode():
        stock_tiles = wan.decode_tiled(latent(3, WIDE)["samples"], tile_x=25, tile_y=25, overlap=8)[0]
    assert psnr(as_images(wan, frames_seen), expected) > psnr(stock_tiles, expected) - 0.5


@pytest.fixture
def scarce_memory(monkeypatch):
    """Makes convolutions of tensors wider than so many pixels fail after the first few."""
    real, calls = torch.nn.functional.conv2d, []

    def limit(pixels: int, after: int):
        def conv2d(x, *args, **kwargs):
            calls.append(x.shape)
            if len(calls) > after and x.shape[-1] > pixels:
                raise torch.OutOfMemoryError("simulated")
            return real(x, *args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)

    return limit


def test_memory_that_runs_out_halves_the_tile_and_goes_on(tiny, save, frames_seen, scarce_memory):
    """In the middle of the second chunk: the halves go on from the past of the whole."""
    expected = stock(tiny, latent(5, WIDE))[0]
    scarce_memory(WIDE[1] * 4 - 1, 3)
    _, report = save(tiny, latent(5, WIDE))
    assert report.count("Out of memory") == report.count("Out of memory with 328 x 24: decoded in two tiles") == 1
    assert psnr(as_images(tiny, frames_seen), expected) > 60


def test_memory_that_runs_out_in_wans_vae_halves_tiles_until_they_fit(wan, save, frames_seen, scarce_memory):
    expected = stock(wan, latent(4, WIDE))[0]
    scarce_memory(WIDE[1] * 4 - 1, 12)
    _, report = save(wan, latent(4, WIDE))
    assert [line for line in report.splitlines() if "two tiles" in line] == [
        f"Out of memory with {width} x 24: decoded in two tiles from then on." for width in (328, 192, 200)
    ]
    assert torch.equal(as_images(wan, frames_seen)[:1], expected[:1])  # decoded before
    assert psnr(as_images(wan, frames_seen), expected) > 20


def test_memory_that_runs_out_sends_the_past_to_the_host_before_the_frame_is_cut(tiny, module, scarce_memory):
    """As on a GPU that the whole frame seems to fit: here the past is on the CPU anyway, and the second failure cuts it."""
    core, z = sys.modules[module.StreamDecoder.__module__], latent(3, WIDE)["samples"]
    tried = []
    decoder = core.StreamDecoder(
        tiny.first_stage_model.decode_chunk,
        core.tiles_of_frame(WIDE, lambda height, width: True),
        lambda error: isinstance(error, torch.OutOfMemoryError),
        keeps_state=True,
        on_out_of_memory=lambda box, tiles: tried.append(len(tiles)),
    )
    with torch.inference_mode():
        expected = tiny.first_stage_model.decode(z)
        scarce_memory(WIDE[1] * 4 - 1, 3)
        out = torch.cat([decoder(z[:, :, start:stop]) for start, stop in core.chunks(3)], 2)
    assert tried == [1, 2]
    assert not decoder.keeps_state
    assert psnr(out / 2, expected / 2) > 60


def test_memory_that_is_not_enough_for_the_smallest_tile_is_an_error(tiny, save, scarce_memory, output):
    before = save(tiny, latent(1))[0]  # counts what it needs: below, only decoding can fail
    scarce_memory(0, 0)
    with pytest.raises(torch.OutOfMemoryError, match="SimpleGVR Decode and Save: out of memory with the smallest tile: close"):
        save(tiny, latent(1))
    assert files(output.parent) == [Path(before[0])]


def test_memory_does_not_grow_with_the_clip(vae, save):
    short, long = (peak_bytes(lambda frames=frames: save(vae, latent(frames, (2, 3)))) - latent_bytes(frames) for frames in (5, 25))
    assert long < 1.05 * short


def latent_bytes(frames: int) -> int:
    return 4 * 16 * frames * 2 * 3


def test_a_server_shows_the_file_and_gives_it_to_stock_video_nodes(server):
    def node(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    workflow = {
        "1": node("SimpleGVRLoadTinyVAE", vae_name="gvr_tiny_vae.safetensors"),
        "2": node("EmptyHunyuanLatentVideo", width=80, height=48, length=9, batch_size=2),
        "3": node("SimpleGVRDecodeSave", vae=["1", 0], latent=["2", 0], fps=17.0, filename_prefix="video/saved", crf=16.0, resume=True,
                  **{"trim": "custom", "trim.frames": 7, "trim.width": 0, "trim.height": 42}),
        "4": node("GetVideoComponents", video=["3", 0]),
        "5": node("SaveAnimatedWEBP", images=["4", 0], filename_prefix="again", fps=17.0, lossless=False, quality=90, method="fastest"),
        "6": node("PreviewAny", source=["3", 1]),
        "7": node("SaveVideo", video=["3", 0], filename_prefix="video/copy", format="auto", codec="auto"),
    }  # fmt: skip
    outputs = asyncio.run(run_workflow(server.address, workflow))
    saved = output_files({"3": outputs["3"]}, server.base / "output")
    assert [path.name for path in saved] == ["saved_00001_.mp4", "saved_00002_.mp4"]
    for path in (*saved, *output_files({"7": outputs["7"]}, server.base / "output")):
        images, rate = read_video(path)
        assert images.shape == (7, 42, 80, 3)
        assert rate == 17
        with av.open(path) as container:
            assert json.loads(container.metadata["prompt"])["3"]["class_type"] == "SimpleGVRDecodeSave"
    assert len(outputs["5"]["images"]) == 2
    assert "saved_00002_.mp4: 7 frames of 80 x 42, 17 a second." in outputs["6"]["text"][0]
    assert not (server.base / "output" / "simplegvr_resume").exists()


if __name__ == "__main__":  # the process of test_a_killed_process_leaves_parts_that_another_goes_on_from
    decode_in_parts(Path(sys.argv[1]), lambda stop: psutil.Process().kill() if stop == 7 else None)
