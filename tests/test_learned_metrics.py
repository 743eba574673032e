"""Learned metrics run where their packages are, and say what is missing elsewhere. Nothing is ever downloaded."""

import json
import math
import sys
from fractions import Fraction
from importlib.util import find_spec

import pytest
import torch

from simplegvr_core.evaluation import learned
from simplegvr_core.evaluation.metrics import METRICS, measure
from simplegvr_core.evaluation.result import EvaluationClip, Result
from simplegvr_core.paper.page import PAPER

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def empty_cache(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    learned.iqa_network.cache_clear()
    yield tmp_path / "hub"
    torch.hub.set_dir(before)
    learned.iqa_network.cache_clear()


def video(frames: int = 3, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("package", "metric", "sentence"),
    [
        ("pyiqa", "musiq", "pip install pyiqa (PolyForm Noncommercial"),
        ("dover", "dover", "git clone https://github.com/VQAssessment/DOVER"),
        ("vbench", "vbench_imaging_quality", "pip install vbench"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(package, metric, sentence):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    assert sentence in METRICS[metric].obstacle(EvaluationClip((256, 256), video()))


@pytest.mark.parametrize("name", ["musiq", "clipiqa"])
def test_weights_of_pyiqa_that_are_missing_are_named_and_not_fetched(name, empty_cache):
    pytest.importorskip("pyiqa")
    why = learned.iqa_absent(name)
    assert str(learned.IQA[name].weights()) in why and f"create_metric('{name}')" in why
    assert not empty_cache.exists()


def test_clip_weights_that_pyiqa_would_replace_are_told_apart(empty_cache):
    pytest.importorskip("pyiqa")
    weights = learned.IQA["clipiqa"].weights()
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"something else")
    assert "delete it" in learned.iqa_absent("clipiqa")


def test_musiq_is_pyiqas_own_with_the_weights_that_are_there(empty_cache):
    pyiqa = pytest.importorskip("pyiqa")
    torch.manual_seed(0)
    weights = learned.IQA["musiq"].weights()
    weights.parent.mkdir(parents=True)
    own = pyiqa.create_metric("musiq", device="cpu", pretrained=False)
    torch.save(own.net.state_dict(), weights)
    assert learned.iqa_absent("musiq") is None
    clip = video(2, 64, 80)
    found = measure("musiq", Result(clip, EvaluationClip((64, 80))))
    expected = [own((clip[:, :, t] + 1) / 2).item() for t in range(2)]
    assert found.curve == pytest.approx(expected, rel=1e-5)
    learned.iqa_network.cache_clear()
    torch.save({"weight": json.dumps}, weights)  # a function by its name
    with pytest.raises(ValueError, match="not a file of weights alone"):
        learned.iqa("musiq", clip)


def test_vbench_measures_a_video_and_names_what_it_would_fetch(empty_cache, monkeypatch):
    utils = pytest.importorskip("vbench.utils")
    monkeypatch.setattr(utils, "CACHE_DIR", str(empty_cache / "vbench"))
    clip = video(1).expand(-1, -1, 4, -1, -1) * 0.5
    flickering = clip + torch.tensor([0, 0.2, 0, 0.2])[:, None, None]  # a tenth of the range
    assert learned.vbench_absent("temporal_flickering") is None
    still, moving = (measure("vbench_temporal_flickering", Result(each, EvaluationClip((64, 96)))).value for each in (clip, flickering))
    assert still == pytest.approx(1, abs=1e-3) and moving == pytest.approx(0.9, abs=5e-3)
    for dimension, files in learned.VBENCH.items():
        why = learned.vbench_absent(dimension) or ""
        assert all(str(empty_cache / "vbench" / file) in why for file in files)
    assert not (empty_cache / "vbench" / "clip_model").exists()


DOVER_LIKE = {  # laid out, named and called as DOVER's clone; its network is one number for each view
    "dover/__init__.py": "",
    "dover/datasets/__init__.py": """
import torch
class UnifiedFrameSampler:
    def __init__(self, fsize_t, fragments_t, frame_interval=1, num_clips=1):
        self.frames = fsize_t * fragments_t * num_clips
        self.given = (fsize_t, fragments_t, frame_interval, num_clips)
def spatial_temporal_view_decomposition(video_path, sample_types, samplers):
    import av
    with av.open(video_path) as file:
        size = file.streams.video[0].height, file.streams.video[0].width
    assert size == (64, 96) and samplers["technical"].given == (8, 3, 2, 1) and samplers["aesthetic"].given == (1, 8, 2, 1)
    frames = {name: 123.675 + 58.395 * torch.arange(sampler.frames)[:, None, None] for name, sampler in samplers.items()}
    return {name: numbers.expand(3, -1, 4, 5) for name, numbers in frames.items()}, None
""",
    "dover/models/__init__.py": """
import torch
class DOVER(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(width))
    def forward(self, views):
        assert views["technical"].shape == (3, 3, 8, 4, 5) and views["aesthetic"].shape == (1, 3, 8, 4, 5)
        red = views["technical"][:, 0, :, 0, 0]  # frame 0 at its mean, a deviation more on each later one
        assert torch.allclose(red.flatten(), torch.arange(24.0), atol=1e-4)
        return [self.weight[("technical", "aesthetic").index(name)].expand(2) for name in views]
""",
    "dover.yml": json.dumps(
        {
            "model": {"args": {"width": 2}},
            "data": {
                "val-l1080p": {
                    "args": {
                        "sample_types": {
                            "technical": {"clip_len": 8, "frame_interval": 2, "num_clips": 3},
                            "aesthetic": {"clip_len": 8, "frame_interval": 2, "t_frag": 8, "num_clips": 1},
                        }
                    }
                }
            },
        }
    ),
}


def test_dovers_three_columns_fit_each_other_in_every_row_of_the_paper():
    """The paper prints all three: from its technical and aesthetic quality follows its overall quality, to 0.8."""
    rows = [row for item in PAPER["items"].values() for row in item["rows"] if "DOVER technical" in row["values"]]
    printed = {tuple(row["values"][f"DOVER {quality}"] for quality in learned.DoverScores._fields) for row in rows}
    assert len(printed) >= 10
    for technical, aesthetic, overall in printed:
        numbers = []
        for name, percent in {"technical": technical, "aesthetic": aesthetic}.items():
            mean, deviation, _ = learned.FUSION[name]
            numbers.append(mean + deviation * math.log(percent / (100 - percent)))
        found = learned.fuse_dover(*numbers)
        assert found[:2] == pytest.approx((technical, aesthetic))
        assert abs(found.overall - overall) < 0.8


def test_all_of_dovers_columns_take_one_run_of_its_network(monkeypatch):
    runs = []
    monkeypatch.setattr(learned, "dover", lambda video, rate: runs.append(video) or learned.DoverScores(1.0, 2.0, 3.0))
    result = Result(video(), EvaluationClip((64, 96)))
    assert [measure(name, result).value for name in ("dover_technical", "dover_aesthetic", "dover")] == [1.0, 2.0, 3.0]
    assert len(runs) == 1


@pytest.mark.parametrize("first", ["technical", "aesthetic"])
def test_dover_is_asked_as_its_own_script_asks_it(first, tmp_path, monkeypatch):
    pytest.importorskip("yaml")
    if find_spec("dover"):
        pytest.skip("dover is installed")
    for name, text in DOVER_LIKE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    config = json.loads(DOVER_LIKE["dover.yml"])
    types = config["data"]["val-l1080p"]["args"]["sample_types"]
    config["data"]["val-l1080p"]["args"]["sample_types"] = {first: types[first]} | types
    (tmp_path / "dover.yml").write_text(json.dumps(config))
    monkeypatch.syspath_prepend(tmp_path)
    weights = tmp_path / "pretrained_weights" / "DOVER.pth"
    assert str(weights) in learned.dover_absent()
    weights.parent.mkdir()
    torch.save({"weight": torch.tensor([0.1107 + 0.07355, -0.08285])}, weights)  # a deviation above the mean, and the mean
    assert learned.dover_absent() is None
    found = learned.dover(video(), Fraction(25))
    assert found.technical == pytest.approx(100 / (1 + 2.718281828**-1), rel=1e-4) and found.aesthetic == pytest.approx(50, rel=1e-4)
    assert found.overall == pytest.approx(100 / (1 + 2.718281828**-0.6104), rel=1e-4)
    learned.dover_network.cache_clear()
    torch.save({"weight": json.dumps}, weights)
    with pytest.raises(ValueError, match="not a file of weights alone"):
        learned.dover(video(), Fraction(25))
    for module in [name for name in sys.modules if name.partition(".")[0] == "dover"]:
        del sys.modules[module]


def test_another_package_of_dovers_name_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "dover").mkdir()
    (tmp_path / "dover" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "not installed" in learned.dover_absent()
