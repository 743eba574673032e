"""The seam meter: clean clips measure 1, real seams and flicker are found, on the axis where they are; files, frames held, the node."""

import json
import math
import subprocess
import sys
import weakref
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import REPO
from einops import rearrange
from PIL import Image

from simplegvr_core.evaluation.measure_seams import MeasureSeams
from simplegvr_core.evaluation.seams import LATENT, VIDEO, Borders, ends, jumps, measure
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.planning.tensor_memory import peak_bytes
from simplegvr_core.sampling.latent_file import write_latent
from simplegvr_core.tiling import spans
from simplegvr_core.video.frames import to_video
from simplegvr_core.video.read import read_video

pytestmark = pytest.mark.usefixtures("one_thread")
CLIPS = [REPO / "assets" / "demo_original.mp4", *sorted((REPO / "tests" / "clips").glob("*.mp4"))]
LEVEL = 1 / 255


@pytest.fixture(scope="module", params=CLIPS, ids=lambda path: path.stem)
def images(request):
    return read_video(request.param)[0] / 255


@pytest.fixture(scope="module")
def z():
    """A real latent, (1, 16, 9, 13, 18)."""
    vae = load_tiny_vae(REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors")
    return vae.encode(to_video(read_video(CLIPS[0])[0][:, :104, :144]))


def seams_of(images, *borders, **overlaps):
    return measure(rearrange(images, "F H W C -> F 1 C H W"), Borders(*borders, **overlaps), VIDEO)[0]


def seams_of_latent(z, *borders):
    return measure(z.unbind(2), Borders(*borders), LATENT)[0]


def test_a_jump_counts_by_what_is_around_it():
    assert jumps(torch.tensor([3.0, 5, 7, 9, 11]), 1).abs().max() == 0  # a slope
    torch.testing.assert_close(jumps(torch.tensor([0.0, 0, 0, 2, 2, 2]), 1)[1], torch.tensor(2 / 3))
    rough = jumps(torch.tensor([0.0, 9, 0, 2 + 9, 2, 11]), 1)[1]
    assert 0 < rough - jumps(torch.tensor([0.0, 9, 0, 9, 0, 9]), 1)[1] < 0.1


def test_tiles_of_real_clips_are_clean_and_an_offset_of_two_levels_is_found(images):
    """Every other tile is brighter, along one axis; the other axis stays as it was."""
    clean = seams_of(images, 0, (96, 96))
    assert clean.columns.ratio == pytest.approx(1, abs=0.08)
    assert clean.rows.ratio == pytest.approx(1, abs=0.08)
    for axis, name in ((2, "columns"), (1, "rows")):
        tile = torch.arange(images.shape[axis]) // 96 % 2
        offset = images + 2 * LEVEL * tile.view([-1 if i == axis else 1 for i in range(4)])
        found = seams_of(offset, 0, (96, 96))
        assert getattr(found, name).ratio > max(1.08, getattr(clean, name).ratio + 0.07), name
        other = "rows" if name == "columns" else "columns"
        assert getattr(found, other).ratio == pytest.approx(getattr(clean, other).ratio, abs=0.02)


def test_segments_of_real_clips_are_clean_and_a_pulse_of_half_a_level_is_found(images):
    clean, pulsed = seams_of(images, 8), images.clone()
    pulsed[5::8] += LEVEL / 2
    found = seams_of(pulsed, 8)
    assert clean.segment_flicker == pytest.approx(1, abs=0.3)
    assert clean.segments.ratio == pytest.approx(1, abs=0.12)
    assert clean.periodicity is None or clean.periodicity < 0.3
    assert found.segment_flicker > 3
    assert found.periodicity > 0.8
    assert found.segments.ratio > clean.segments.ratio + 0.03


def test_segments_of_other_brightness_that_are_cross_faded_are_found():
    """On a clip whose own brightness is steady: segments of 24 frames, 1 % brighter or darker, cross-faded over 4."""
    images = read_video(REPO / "tests" / "clips" / "held_out_30s.mp4")[0][:, :120, :200] / 255
    images = torch.cat([images, images.flip(0)] * 4)  # 136 frames
    level = 1 + 0.01 * (-1.0) ** torch.arange(6)
    gain = np.interp(np.arange(136), [x for k in range(1, 6) for x in (24 * k - 3.5, 24 * k + 0.5)], level.repeat_interleave(2)[1:-1])
    found, clean = (seams_of(clip, 24) for clip in (images * torch.from_numpy(gain).float().view(-1, 1, 1, 1), images))
    assert clean.segment_flicker == pytest.approx(1, abs=0.2)
    assert found.segment_flicker > 2


def test_a_still_clip_has_no_seams():
    frame = torch.rand(1, 40, 70, 3, generator=torch.Generator().manual_seed(0))
    seams = seams_of(frame.expand(20, -1, -1, -1), 8)
    assert seams.segment_flicker == seams.segments.ratio == 1
    assert seams.periodicity is None


def test_borders_are_those_of_the_sampler():
    """Segments of latent frames: the first stands for one video frame. The pulse is found there only."""
    images = torch.full((33, 36, 68, 3), 0.5)
    images[13:] += 4 * LEVEL
    found = seams_of(images, 16).segments  # 4 latent frames: 1 + 12 video frames
    assert (found.worst > 10, found.place, found.count) == (True, 13, 2)
    assert seams_of(images, 16, (0, 0), 13).segments == found
    assert seams_of(images, 16, (0, 0), 11).segments.worst < 1.1
    z = torch.zeros(1, 16, 9, 5, 7)
    z[:, :, 4:] += 0.5
    found = seams_of_latent(z, 4)
    assert (found.segments.worst > 10, found.segments.place) == (True, 4)


@pytest.mark.parametrize("extent", [5, 10, 11, 15, 16, 41])
@pytest.mark.parametrize(("size", "overlap"), [(10, 5), (15, 5), (7, 3), (4, 0)])
def test_ends_are_where_the_sampler_s_boxes_begin_and_have_ended(extent, size, overlap):
    boxes = spans(extent, size, overlap)
    begin, end = [start for start, _ in boxes[1:]], [stop for _, stop in boxes[:-1]]
    assert ends(size - overlap, size - overlap, overlap, extent) == (begin, end)


def test_the_worse_end_of_an_overlap_is_measured():
    """A step where the first box has ended, and none where the second begins: along time, width and height."""
    images = torch.full((45, 120, 125, 3), 0.5)
    at_end = images.clone()
    at_end[13 + 8 :] += 4 * LEVEL
    assert seams_of(at_end, 16).segments.worst < 1.1
    found = seams_of(at_end, 16, overlap=8)
    assert (found.segments.worst > 10, found.segments.place, found.segments.count) == (True, 21, 2)
    at_end[37:] += 4 * LEVEL
    assert seams_of(at_end, 16, overlap=8).segment_flicker > 10
    assert seams_of(images, 16, overlap=8).segment_flicker == 1
    for name, axis in (("columns", 2), ("rows", 1)):
        later = torch.arange(images.shape[axis]) >= 48 + 32
        stepped = images + 4 * LEVEL * later.view([-1 if i == axis else 1 for i in range(4)])
        assert getattr(seams_of(stepped, 0, (48, 48)), name).worst < 1.1
        found = getattr(seams_of(stepped, 0, (48, 48), tile_overlap=(32, 32)), name)
        assert (found.worst > 10, found.place, found.count) == (True, 80, 1)


def test_both_ends_of_real_clips_are_clean(images):
    clean = seams_of(images, 16, (96, 96), overlap=8, tile_overlap=(48, 48))
    assert [clean.columns.ratio, clean.rows.ratio] == pytest.approx([1, 1], abs=0.12)  # one to five borders each
    assert clean.segments is None or clean.segments.ratio == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_half_precision_is_measured_on_any_device(device, images):
    half = images.half().to(device)
    assert seams_of(half, 8, (96, 96)) == seams_of(half.float().cpu(), 8, (96, 96))


def test_the_latent_of_a_clip_shows_an_offset_at_its_tiles_and_segments(z):
    clean, spoilt = seams_of_latent(z, 4, (6, 6)), z.clone()
    spoilt[:, :, 4:8] += 0.3
    spoilt[..., 6:12] += 0.5
    found = seams_of_latent(spoilt, 4, (6, 6))
    assert found.columns.ratio > clean.columns.ratio + 0.03
    assert found.rows.ratio == pytest.approx(clean.rows.ratio, abs=0.02)
    assert found.segments.ratio > clean.segments.ratio + 0.03
    assert found.segment_flicker > 2 * clean.segment_flicker


def test_what_cannot_be_measured_is_none():
    for frames in (1, 3, 9):
        seams = seams_of(torch.rand(frames, 7, 5, 3), 40, (64, 64))
        assert set(vars(seams).values()) == {None}


@pytest.mark.parametrize("borders", [(7,), (16, (20, 0)), (0, (0, 31))])
def test_borders_too_dense_to_compare_are_refused(borders):
    with pytest.raises(ValueError, match=r"(period|tile) is \d+, wanted at least (8|32)"):
        seams_of(torch.rand(9, 64, 64, 3), *borders)


@pytest.mark.parametrize(("period", "overlap", "least"), [(8, 4, 12), (20, 24, 24), (10, 5, 13)])
def test_overlaps_that_leave_nothing_between_are_refused(period, overlap, least):
    with pytest.raises(ValueError, match=f"period is {period} with an overlap of {overlap}, wanted at least {least}"):
        seams_of(torch.rand(9, 64, 64, 3), period, overlap=overlap)
    seams_of(torch.rand(9, 64, 64, 3), least, overlap=overlap)


def test_frames_are_not_held():
    alive, most = weakref.WeakSet(), 0

    def frames():
        nonlocal most
        for _ in range(12):
            frame = torch.rand(1, 3, 20, 30)
            alive.add(frame)
            yield frame
            del frame
            most = max(most, len(alive))

    measure(frames(), Borders(8), VIDEO)
    assert most <= 2


def test_the_command_measures_a_video_and_a_latent(tmp_path, z):
    video, out = CLIPS[1], tmp_path / "seams.png"
    command = [
        sys.executable,
        "-m",
        "simplegvr_core",
        "seams",
        "--video",
        video,
        "--period",
        "8",
        "--tile",
        "96",
        "64",
        "--out",
        out,
    ]
    command += ["--overlap", "8", "--tile-overlap", "48", "32"]
    ran = subprocess.run(list(map(str, command)), cwd=REPO, capture_output=True, text=True, check=True)
    expected = seams_of(read_video(video)[0] / 255, 8, (96, 64), overlap=8, tile_overlap=(48, 32))
    printed = json.loads(ran.stdout.splitlines()[-1])
    assert printed.keys() == asdict(expected).keys()
    for name, value in asdict(expected).items():
        assert printed[name] == pytest.approx(value, rel=1e-4), name  # another process, another number of threads
    assert f"segment borders: {expected.segments.ratio:.3f}" in ran.stdout
    picture = np.array(Image.open(out))
    assert picture.shape == (840, 1100, 3)
    for color in ((33, 113, 181), (214, 39, 40)):  # the curves and the borders
        assert (picture == color).all(2).sum() > 1000
    path = tmp_path / "z.safetensors"
    with write_latent(path, tuple(z.shape), {}) as append:
        append(z)
    assert MeasureSeams(path, period=4, tile=(6, 6), out=out).run() == seams_of_latent(z, 4, (6, 6))


def test_a_file_that_is_neither_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--video is x\.txt, wanted .*\.mp4.*\.safetensors"):
        MeasureSeams(tmp_path.__class__("x.txt"), period=8, out=tmp_path / "x.png").run()


# The node


def run_node(comfy, video, **changes):
    inputs = dict(
        video=video, period=8, tile_width=96, tile_height=0, first_border=0, overlap=0, tile_overlap_width=0, tile_overlap_height=0
    )
    return comfy.run("SimpleGVRSeamMeter", **{**inputs, **changes})


def test_the_node_measures_images_and_latents(comfy, z):
    images = read_video(CLIPS[1])[0] / 255
    plot, report, *numbers = run_node(comfy, torch.cat((images, torch.rand_like(images[..., :1])), dim=3))  # with alpha
    expected = seams_of(images, 8, (96, 0))
    assert plot.shape == (1, 840, 1100, 3)
    assert f"{expected.columns.ratio:.3f}" in report
    assert numbers[:1] + numbers[2:4] == pytest.approx([expected.segment_flicker, expected.segments.ratio, expected.columns.ratio])
    assert math.isnan(numbers[4])

    from comfy.latent_formats import Wan21

    raw = {"samples": Wan21().process_out(z)}
    overlaps = dict(overlap=4, tile_overlap_width=6, tile_overlap_height=1)
    *_, segments, columns, rows = run_node(comfy, raw, period=4, tile_width=6, tile_height=6, **overlaps)
    expected = seams_of_latent(z, 4, (6, 6), None, 4, (6, 1))
    assert [segments, columns, rows] == pytest.approx([expected.segments.ratio, expected.columns.ratio, expected.rows.ratio], rel=1e-3)


def test_the_node_copies_no_clip_of_half_precision(comfy):
    clip = torch.rand(60, 240, 320, 3).half()
    assert peak_bytes(lambda: run_node(comfy, clip)) < 1.5 * clip.nbytes


def test_the_node_names_itself_in_errors(comfy):
    with pytest.raises(ValueError, match="SimpleGVR Seam Meter: period is 3, wanted at least 8"):
        run_node(comfy, torch.rand(9, 64, 64, 3), period=3)
    with pytest.raises(ValueError, match="SimpleGVR Seam Meter: the latent has 4 channels"):
        run_node(comfy, {"samples": torch.rand(1, 4, 3, 8, 8)})
