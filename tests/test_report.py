"""The report of an evaluation: what is marked best, which frames are shown, that it opens from disk, alone, light and dark, narrow."""

import json
import re
import subprocess
import sys
from fractions import Fraction
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from browser import find_chromium
from conftest import REPO
from PIL import Image
from playwright.sync_api import sync_playwright

from simplegvr_core.evaluation import report
from simplegvr_core.evaluation.report_page import Page
from simplegvr_core.video import pictures as crops
from simplegvr_core.video.read import read_video
from simplegvr_core.video.write import write_video

FRAMES = 6
CLIPS = ("held out #1 <b>", "deeper/second")  # names that a page must quote


def numbers(**changed) -> dict:
    return {"psnr": 30.0, "st_lpips": 0.2, "seconds_per_frame": 1.0, "niqe": None} | changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An evaluation as evaluate.py leaves it: real videos, chosen numbers. gvr is worst in frame 4 and best in frame 1."""
    folder = tmp_path_factory.mktemp("evaluation")
    images = read_video(REPO / "assets" / "demo_original.mp4", FRAMES)[0][:, :96, :144]
    curves = {"gvr": [0.3, 0.1, 0.3, 0.3, 0.9, None], "bicubic": [0.25] * FRAMES, "bilinear": [0.5] * FRAMES, "vae": [0.01] * FRAMES}
    files = {}
    for clip in CLIPS:
        videos = {
            "source": images[:, ::3, ::3],
            "original": images,
            "gvr": images.clone(),
            "bicubic": images,
            "bilinear": images,
            "vae": images,
        }
        videos["gvr"][4, 64:, 96:] = 0  # where it is farthest from the original
        videos["gvr"][1, :32, :48] = 255
        files[clip] = {name: f"{clip}/{name}.mp4" for name in videos}
        for name, video in videos.items():
            write_video(folder / files[clip][name], video, Fraction(24))
    better = {"psnr": ("PSNR", "dB", "higher"), "st_lpips": ("ST-LPIPS", "", "lower"), "niqe": ("NIQE", "", "lower")}
    better["seconds_per_frame"] = ("seconds a frame", "", "lower")
    rows = {"gvr": numbers(psnr=31.0), "bicubic": numbers(psnr=30.999, st_lpips=0.1), "bilinear": numbers(st_lpips=0.3)}
    rows["vae"] = numbers(psnr=40.0, st_lpips=0.01)
    results = {
        "suite": "pairs",
        "run": {"command": "evaluate --clips CLIPS", "date": "2026-11-25T15:57:33+00:00", "device": "cpu", "num_frames": 6, "height": 96,
                "seed": 0, "tile": None, "sampling": {"steps": 2}, "files": {"model.safetensors": "abc"}},
        "reconstructions": ["vae"],
        "metrics": {name: {"label": label, "unit": unit, "better": way, "decimals": 2, "meaning": f"About {label}."}
                    for name, (label, unit, way) in better.items()},
        "skipped": {"vmaf": "ffmpeg is not here"},
        "clips": dict.fromkeys(CLIPS, rows),
        "curves": {clip: {method: {"st_lpips": curve} for method, curve in curves.items()} for clip in CLIPS},
        "mean": rows,
        "original": {clip: {"niqe": 3.25} for clip in CLIPS},
        "files": files,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    command = [sys.executable, "-m", "simplegvr_core", "report", str(folder)]
    ran = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == {"report": str(folder / "report.html")}
    return folder


@pytest.fixture(scope="module")
def html(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects what a page refers to, its ids, and the rows of its tables: of each cell its text, marked best or not."""

    def __init__(self):
        super().__init__()
        self.paths, self.anchors, self.ids, self.rows, self.cell = [], [], [], [], None

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.paths += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]
        self.anchors += [unquote(given["href"][1:])] if given.get("href", "").startswith("#") else []
        self.ids += [given["id"]] if "id" in given else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ["", given.get("class") == "best"]
            self.rows[-1].append(self.cell)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.cell[0] += data


@pytest.fixture(scope="module")
def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def test_everything_that_the_page_refers_to_is_beside_it(folder, html, read):
    assert len(read.paths) == 2 * (6 + 2 * 7) + 2
    assert all((folder / unquote(path)).is_file() for path in read.paths)
    assert set(read.anchors) == set(CLIPS) <= set(read.ids)
    assert not re.search(r"(?:src|href)=.?https?:|@import|url\(.?https?:", html)
    assert "held out #1 &lt;b&gt;" in html and "held out #1 <b>" not in html


def test_the_best_of_a_column_is_marked_as_it_is_shown_and_reconstructions_take_no_part(read):
    header, gvr, bicubic, bilinear, vae = read.rows[:5]
    assert [cell[0] for cell in header] == ["method", "PSNRdB, higher is better", "ST-LPIPSlower is better", "NIQElower is better",
                                            "seconds a framelower is better"]  # fmt: skip
    assert gvr == [["gvr", False], ["31.00", True], ["0.20", False], ["-", False], ["1.00", False]]
    assert bicubic[1:3] == [["31.00", True], ["0.10", True]]  # 30.999 is shown as 31.00: nobody could see why one is better
    assert not any(best for _, best in bilinear + vae)
    assert [["original", False], ["-", False], ["-", False], ["3.25", False], ["-", False]] in read.rows


def test_best_follows_the_direction_and_nothing_is_best_where_all_are_alike(folder):
    results = json.loads((folder / "results.json").read_text())
    page = Page(folder, results)
    rows = {"gvr": {"psnr": 1, "st_lpips": 1, "niqe": None}, "bicubic": {"psnr": 2, "st_lpips": 2, "niqe": 5}}
    assert page.best(rows, "psnr") == ["bicubic"] and page.best(rows, "st_lpips") == ["gvr"]
    assert page.best({"gvr": {"psnr": 2}, "bicubic": {"psnr": 2}}, "psnr") == page.best(rows, "niqe") == []


def test_the_worst_and_the_best_frame_are_shown_where_they_differ_most(folder, html):
    assert "gvr's worst frame, 4" in html.replace("&#39;", "'") and "gvr's best frame, 1" in html.replace("&#39;", "'")
    frames = folder / CLIPS[0] / "frames"
    assert np.asarray(Image.open(frames / "worst_gvr.png")).shape == (32, 48, 3)
    assert np.asarray(Image.open(frames / "worst_gvr.png")).mean() < 20 < np.asarray(Image.open(frames / "worst_original.png")).mean()
    assert np.asarray(Image.open(frames / "best_gvr.png")).mean() > 235 > np.asarray(Image.open(frames / "best_original.png")).mean()
    original = read_video(folder / CLIPS[0] / "original.mp4")[0]
    assert (np.asarray(Image.open(frames / "worst_bicubic.png")) == original[4, 64:, 96:].numpy()).all()
    source = np.asarray(Image.open(frames / "worst_source.png"))
    assert source.shape == (32, 48, 3) and (source[::3][:10, ::3] == source[1::3][:10, 1::3]).mean() > 0.6  # blocks of 3 x 3


def test_what_was_not_measured_and_how_it_was_run_is_said(html):
    assert "<b>vmaf</b>: ffmpeg is not here" in html
    assert "evaluate --clips CLIPS" in html and "sha256 abc" in html and "steps 2" in html and "None" not in html


def test_a_browser_opens_it_from_disk_alone_and_plays_the_videos_together(folder, tmp_path_factory):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"])
        for name, scheme, width in (("light", "light", 1400), ("dark", "dark", 1400), ("narrow", "dark", 400)):
            page, said, asked = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto((folder / "report.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
            light = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
            assert (light[1] - light[0] > 500) if scheme == "light" else (light[0] - light[1] > 500), name
            text = page.locator(".plots svg text").first
            assert text.evaluate("node => getComputedStyle(node).fill") == ink
            clip = page.locator("details.clip").first
            clip.get_by_role("button").click()
            page.wait_for_function("[...document.querySelector('.clip').querySelectorAll('video')].every(v => v.currentTime > 0)")
            clip.get_by_role("button").click()
            clip.locator("input").evaluate("s => { s.value = 0.5; s.dispatchEvent(new Event('input')) }")
            times = clip.locator("video").evaluate_all("videos => videos.map(video => video.currentTime)")
            assert times == pytest.approx([0.125] * 6, abs=0.001)
            page.screenshot(path=tmp_path_factory.getbasetemp() / f"report_{name}.png", full_page=True)
            assert said == [] and all(url.startswith("file:") for url in asked)
        browser.close()


def test_a_folder_without_results_and_results_of_an_older_version_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"contains no results\.json: give the --out"):
        report.Report(tmp_path).run()
    (tmp_path / "results.json").write_text(json.dumps({"clips": {}, "mean": {}}))
    with pytest.raises(ValueError, match="is from an older version: run the evaluation again"):
        report.Report(tmp_path).run()


def picture_of(**images) -> torch.Tensor:
    return torch.from_numpy(np.array(crops.side_by_side(images)))


def test_pictures_side_by_side_enlarge_where_the_first_has_most_detail():
    original = torch.full((54, 72, 3), 100, dtype=torch.uint8)
    original[36:54:2, 2:26:2] = 255
    method = original.flip(2).clone()
    method[..., 0] = 7
    picture = picture_of(original=original, method=method)
    assert picture.shape == (54 + crops.LABEL, 3 * 72, 3)
    tile = picture[crops.LABEL :, 72:144]
    top, left, *size = crops.most_detailed(original)
    assert abs(top - 36) <= 1 and abs(left - 2) <= 1 and size == [18, 24]
    crop = original[top : top + 18, left : left + 24]
    assert crop.any() and torch.equal(tile[::3, ::3], crop) and torch.equal(tile[1::3, 2::3], crop)
    assert original.unique().tolist() == [100, 255]  # untouched
    assert (picture[crops.LABEL :, 144:, 0] == 7).all()
    assert (picture[: crops.LABEL, 144:] < 100).any()  # its label


def test_pictures_side_by_side_stay_small_however_large_the_frames():
    picture = picture_of(
        **{"a name that is far too long for its tile, which has to shrink to fit into it": torch.zeros(1080, 1920, 3).byte()}
    )
    assert picture.shape[1] <= 3 * crops.LONGEST and (picture[: crops.LABEL, -5:] == 255).all()
