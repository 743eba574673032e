"""The paper's page: the paper's figures are the paper's, ours are marked as ours, and what is missing says why."""

import json
import re
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from conftest import REPO

from simplegvr_core.evaluation.evaluate import mean_of
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.paper import bench as paper_bench
from simplegvr_core.paper.ablate import AXES as ABLATED
from simplegvr_core.paper.ablate import as_markdown
from simplegvr_core.paper.ablation import AXES, ablation_rows
from simplegvr_core.paper.bench import Bench, Options
from simplegvr_core.paper.command import MEASURED, Paper
from simplegvr_core.paper.page import NOT_MEASURED, PAPER, join
from simplegvr_core.paper.tables import alone
from simplegvr_core.planning import flops
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.video.frames import area_downscale, to_images, to_video
from simplegvr_core.video.read import read_video
from simplegvr_core.video.write import write_video

pytestmark = pytest.mark.usefixtures("one_thread")
ITEMS = {f"figure-{number}" for number in range(1, 11)} | {"table-1", "table-2", "table-3", "upsampler-ablation", "degradation-ablation"}
VBENCH = ("background consistency", "subject consistency", "aesthetic quality", "imaging quality", "motion smoothness")


def paper(item: str, row: str, source: str) -> dict:
    """Returns the values of one row of the paper."""
    (found,) = [r["values"] for r in PAPER["items"][item]["rows"] if (r["name"], r["source"]) == (row, source)]
    return found


def test_every_table_and_figure_of_the_paper_has_an_entry_that_is_made():
    assert PAPER["items"].keys() == ITEMS == MEASURED.keys() | AXES.keys()
    for item in PAPER["items"].values():
        assert item["shows"]
        for row in item["rows"]:
            assert row["source"] in PAPER["sources"] and row["values"].keys() <= set(item["columns"])


def test_the_papers_averages_are_those_of_its_own_figures():
    rows = [row for item in ("table-1", "table-3") for row in PAPER["items"][item]["rows"] if row["source"] == "v1"]
    assert len(rows) == 8
    for row in rows:
        values = [row["values"][f"VBench {name}"] for name in VBENCH]
        assert row["values"]["VBench average"] == pytest.approx(sum(values) / 5, abs=0.0101), row["name"]


@pytest.mark.parametrize(
    "item, row, source, column, value",
    [
        ("table-1", "SimpleGVR", "v1", "MUSIQ", 62.35),
        ("table-1", "SimpleGVR", "ICLR", "CLIPIQA", 0.6768),
        ("table-1", "RealBasicVSR", "ICLR", "MANIQA", 0.4591),
        ("table-1", "STAR", "v1", "DOVER overall", 67.76),
        ("table-1", "VEnhancer", "v1", "VBench motion smoothness", 99.16),
        ("table-2", "swin", "v1", "MUSIQ", 59.33),
        ("table-3", "end to end", "v1", "DOVER overall", 62.32),
        ("table-3", "end to end", "ICLR", "DiT seconds", 950),
        ("table-3", "cascaded", "ICLR", "DiT seconds", 283),
        ("figure-6", "detail-aware", "v1", "DOVER technical", 18.92),
        ("upsampler-ablation", "token concatenation", "ICLR", "DOVER overall", 58.03),
        ("degradation-ablation", "+ model-guided", "ICLR", "DOVER overall", 69.64),
    ],
)
def test_figures_are_as_the_paper_prints_them(item, row, source, column, value):
    assert paper(item, row, source)[column] == value


def test_what_the_paper_prints_twice_is_the_same_here():
    """SimpleGVR in tables 1 and 3; its chosen attention, sampler and degradation; operations in the benchmark; its units."""
    assert paper("table-3", "cascaded", "v1") == paper("table-1", "SimpleGVR", "v1")
    assert paper("figure-6", "detail-aware", "v1").items() <= paper("table-2", "full", "v1").items()
    assert paper("degradation-ablation", "+ model-guided", "ICLR").items() <= paper("table-2", "full", "v1").items()
    assert {kind: paper("table-2", kind.replace("_", " "), "v1")["GFLOPS"] for kind in flops.PAPER_GFLOPS} == flops.PAPER_GFLOPS
    units = {
        f"{parity} layers": " ".join(map(str, AttentionConfig().unit_lengths(20, block))) for block, parity in enumerate(("even", "odd"))
    }
    rows = PAPER["items"]["figure-8"]["rows"]
    assert {row["name"]: row["values"]["latent frames of each unit"] for row in rows} == units


def test_a_table_says_whose_each_row_is_and_what_is_not_measured():
    item = {"columns": ["MUSIQ", "DOVER"], "rows": [{"name": "a", "source": "v1", "values": {"MUSIQ": 98.70, "DOVER": 1.25}}]}
    table = join(item, {"here, tiny": {"b": {"MUSIQ": 5.0, "PSNR": 30.0}}})
    assert table.columns == ["MUSIQ", "DOVER", "PSNR"]
    assert table.rows == [("a", "paper, v1", ["98.7", "1.25", ""]), ("b", "here, tiny", ["5.0", NOT_MEASURED, "30.00"])]
    assert join({"columns": [], "rows": []}, {}) is None


def test_columns_that_only_an_ablation_left_empty_say_why(clips, tmp_path):
    """Table 2 is not made here: its operations are not counted, which its rows of small models must not hide."""
    item = Paper(clips=clips, out=tmp_path, num_frames=5, only=("figure-8",), ablation=REPO / "docs").run()["table-2"]
    assert item["groups"].keys() == {"here, small models"}
    explained = {column: reason for reason, columns in item["missing"].items() for column in columns}
    assert explained.keys() == set(item["paper"]["columns"]) and explained["GFLOPS"] == "it takes `--only table-2`"
    html = (tmp_path / "paper.html").read_text(encoding="utf-8")
    assert "it takes <code>--only table-2</code>" in html and "`" not in html


def test_a_video_without_a_value_has_none_rather_than_nan():
    still = torch.zeros(1, 3, 3, 192, 192)  # alike everywhere: NIQE has no block with contrast
    values = alone(still)
    assert values["niqe"] is None and values["warping_error"] == pytest.approx(0, abs=1e-9)
    assert mean_of([None, 1.0, 3.0]) == 2 and mean_of([None]) is None


def test_ablation_results_stand_under_the_papers_names():
    table = json.loads((REPO / "docs" / "ablation.json").read_text())
    assert as_markdown(table) in (REPO / "docs" / "ablation.md").read_text()
    for item, axes in AXES.items():
        assert all(axis.variants.keys() <= ABLATED[axis.name].keys() for axis in axes)
        theirs = {row["name"] for row in PAPER["items"][item]["rows"]}
        assert not theirs or ablation_rows(item, table).keys() == theirs
    assert ablation_rows("upsampler-ablation", table)["token concatenation"]["PSNR, dB"] == pytest.approx(21.139, abs=5e-4)
    assert ablation_rows("figure-1", table) == ablation_rows("figure-6", {}) == {}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with a low-resolution clip of 5 frames, 96 x 64 pixels."""
    folder = tmp_path_factory.mktemp("clips")
    video = area_downscale(to_video(read_video(REPO / "tests" / "clips" / "held_out_12s.mp4", 5)[0]), 2)
    write_video(folder / "rabbit.mp4", to_images(video[..., 40:104, 60:156]), Fraction(24))
    return folder


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """A small page of everything that can be measured, and the command that made it."""
    sampling = SamplingConfig(steps=2, shift=3.0)
    options = {"samples": 1, "scale": 2, "num_frames": 5, "t2v_size": (64, 96), "t2v_sampling": sampling, "ablation": REPO / "docs"}
    paper = Paper(clips=clips, out=tmp_path_factory.mktemp("out"), **options)
    return paper, paper.run()


def test_the_page_has_every_item_and_every_picture_that_it_shows(made):
    paper, results = made
    assert json.loads((paper.out / "paper.json").read_text()).keys() == results.keys() == ITEMS
    markdown, html = ((paper.out / f"paper.{suffix}").read_text() for suffix in ("md", "html"))
    for item in PAPER["items"].values():
        assert f"## {item['title']}\n" in markdown and item["title"].replace("'", "&#39;") in html
    pictures = re.findall(r"!\[.*?\]\((.+?)\)", markdown)
    assert len(pictures) == 8 and pictures == re.findall(r'img src="(.+?)"', html)
    assert all((paper.out / picture).stat().st_size > 1000 for picture in pictures)
    assert not list(paper.out.rglob("*.partial.*"))


def test_every_row_is_marked_and_the_papers_are_unchanged(made):
    markdown = (made[0].out / "paper.md").read_text()
    marks = [line.split(" | ")[1] for line in markdown.splitlines() if line.startswith("| ") and not line.startswith("| | ")]
    assert {"paper, v1", "paper, v3", "paper, ICLR", "here, gvr_tiny", "here, small models"} == set(marks)
    assert "| STAR | paper, v1 | 46.73 |  |  | 18.17 | 98.66 | 67.76 |" in markdown
    assert "| end to end | paper, ICLR |" in markdown


def test_every_column_of_the_paper_is_measured_or_says_why_not(made):
    _, results = made
    for name, item in results.items():
        measured = {column for rows in item["groups"].values() for row in rows.values() for column in row}
        explained = {column: reason for reason, columns in item["missing"].items() for column in columns}
        assert all(explained.values())
        assert not item["groups"] or set(item["paper"]["columns"]) <= measured | explained.keys(), name


def test_what_is_finished_is_kept_until_an_option_changes(made, clips):
    paper, results = made
    before = {path: path.stat().st_mtime_ns for path in paper.out.glob("*/result.json")}
    assert len(before) > 10
    again = replace(paper, only=("figure-8",)).run()
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changed = replace(paper, only=("figure-4",), seed=1).run()
    assert changed["figure-4"]["groups"] != results["figure-4"]["groups"]
    assert "`--only figure-2`" in changed["figure-2"]["note"]


def test_figures_here_are_those_of_the_weights(made):
    """Likeness falls with alpha; units are the checkpoint's; the operator as trained gives what the model gives."""
    _, results = made
    likeness = [row["PSNR to the source, dB"] for row in results["figure-4"]["groups"]["here, gvr_tiny"].values()]
    assert likeness == sorted(likeness, reverse=True) and likeness[0] > likeness[-1] + 3
    assert results["figure-8"]["groups"]["here, gvr_tiny"]["odd layers"]["latent frames of each unit"] == "2 5 5 5 3"
    operators = results["table-2"]["groups"]["here, gvr_tiny"]
    as_trained, full = (operators[kind]["PSNR to the result as trained, dB"] for kind in ("sparse local", "full"))
    assert as_trained > 60 and as_trained > full + 10
    shares = [row["share of the change, %"] for row in results["figure-5"]["groups"]["here, gvr_tiny"].values()]
    assert sum(shares) == pytest.approx(100)


def test_what_is_finished_is_made_anew_when_a_baseline_or_the_code_is_another(tmp_path, monkeypatch):
    makings = iter(range(9))

    def made(name: str) -> int:
        return Bench(Options(), tmp_path).computed_once(name, lambda folder: {"making": next(makings)})["making"]

    monkeypatch.setattr(paper_bench.baselines, "HOME", tmp_path / "baselines")
    assert [made(name) for name in ("table-1", "figure-8", "table-1", "figure-8")] == [0, 1, 0, 1]
    (tmp_path / "baselines" / "span").mkdir(parents=True)
    assert (made("table-1"), made("figure-8")) == (2, 1)
    monkeypatch.setattr(paper_bench, "versions", lambda: {"commit": "another"})
    assert (made("table-1"), made("figure-8")) == (3, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"only": ("figure-1", "figure-11")}, "--only has unknown figure-11; known are figure-1, "),
        ({"t2v_size": (120, 224)}, r"--t2v-size is \(120, 224\), wanted multiples of 16"),
        ({"num_frames": 16}, r"--num-frames is 16, wanted 4 n \+ 1"),
        ({"ablation": REPO / "tests"}, "--ablation .*tests has no ablation.json: give the --out of `simplegvr ablate`"),
        ({"contexts": REPO / "docs"}, "--contexts .*docs has no .safetensors file"),
        ({"t2v": Paper.model, "only": ("figure-4",)}, "--t2v .*gvr_tiny.safetensors takes 32 channels, a text-to-video model 16"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_an_option_of_no_use_is_named(options, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Paper(out=tmp_path, **options).run()


@pytest.mark.slow
def test_a_smoke_ablation_has_every_row_and_says_that_it_means_nothing(clips, tmp_path):
    results = Paper(clips=clips, out=tmp_path, only=("figure-8",), smoke_ablation=True).run()
    for item, axes in AXES.items():
        (rows,) = [rows for whose, rows in results[item]["groups"].items() if whose == "here, models of ten steps, which mean nothing"]
        assert list(rows) == [name for axis in axes for name in axis.variants.values()]
