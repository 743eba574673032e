"""The benchmark times what it says, beside floors, and says why it leaves something out."""

import json
import subprocess
import sys
from functools import partial
from time import sleep
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO
from PIL import Image

from simplegvr_core.benchmark import attention, command, network
from simplegvr_core.benchmark import machine as measure
from simplegvr_core.evaluation import versions
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig
from simplegvr_core.networks.windows import TokenLayout

DIT = DiTConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2)
T2V = DiTConfig(in_dim=16, dim=256, ffn_dim=320, num_heads=2, num_layers=4)
QUICK = {"timing_s": 0.01}


@pytest.fixture(autouse=True)
def without_comfyui(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


def check_files(folder, name, results):
    assert json.loads((folder / f"{name}.json").read_text()) == json.loads(json.dumps(results))
    assert results["rows"][0]["name"] in (folder / f"{name}.md").read_text()
    with Image.open(folder / f"{name}.png") as picture:
        assert len(picture.convert("L").histogram()) == 256 and picture.getextrema() != ((255, 255),) * 4


def test_attention_compares_ours_with_dense(tmp_path):
    options = dict(grids=((4, 24, 36),), heads=1, head_dim=64, top_k=(1, 3), window=(1, 6, 6), unit=2)
    results = attention.AttentionBenchmark(**options, out=tmp_path, **QUICK).run()
    check_files(tmp_path, "attention", results)
    rows = {row["name"]: row for row in results["rows"]}
    flash, ours = rows["dense: sdpa flash"], rows["ours, k 1: sdpa"]
    assert flash["error"] < 1e-5 and rows["ours, k 1, windows given (random): sdpa"]["error"] < 1e-5
    assert ours["error"] < 1e-5  # which finds its windows itself
    assert results["fastest_sparse"] == "ours, k 1: sdpa"
    assert results["sparse_over_dense"] == pytest.approx(flash["ms"] / ours["ms"])
    assert results["share_of_dense"] == pytest.approx(2 / 96)
    copy, matrix = results["copy_gb_per_s"] * 1e6, results["matrix_tflops"] * 1e9  # bytes and FLOPs a millisecond
    tokens = 4 * 24 * 36
    for row, pairs in ((flash, tokens**2), (ours, tokens * 72)):
        assert row["floor_ms"] == pytest.approx(max(4 * 64 * pairs / matrix, 4 * 4 * 64 * tokens / copy))
    assert results["scaling_4x_tokens"] > 0
    assert rows["dense: comfyui"]["ms"] is None and "COMFYUI_PATH" in rows["dense: comfyui"]["note"]
    units = rows["dense units: sdpa flash"]
    assert results["sparse_over_dense_units"] == pytest.approx(units["ms"] / ours["ms"])
    assert units["floor_ms"] == pytest.approx(max(4 * 64 * tokens**2 / 2 / matrix, 4 * 4 * 64 * tokens / copy))
    assert {"ours, k 3: sdpa", "swin"} <= rows.keys()


def test_model_times_every_attention_and_size(tmp_path):
    results = network.NetworkBenchmark(sizes=((64, 96), (96, 160)), num_frames=(5,), dit=DIT, out=tmp_path, **QUICK).run()
    check_files(tmp_path, "model", results)
    names = [row["name"] for row in results["rows"]]
    assert names[:4] == [f"{name}, 96 x 64, 5 frames" for name in attention.ATTENTIONS] and len(names) == 10
    assert set(results["dense_over_sparse"]) == {"96 x 64, 5 frames", "160 x 96, 5 frames"}
    assert all(row["ms"] for row in results["rows"][:-1])


def test_cascade_adds_up_layers_and_stages(tmp_path):
    sizes = {"size": (96, 160), "low_size": (48, 80), "dit": DIT, "t2v": T2V}
    results = network.CascadeBenchmark(num_frames=5, steps=(50, 4), out=tmp_path, device="cpu", **sizes, **QUICK).run()
    seconds = results["seconds_per_step"]
    one, three = (row["ms"] / 1e3 for row in results["rows"][:2])
    assert seconds["large, end to end"] == pytest.approx(one + 1.5 * (three - one))
    first, second = seconds["large, low resolution"], seconds["SimpleGVR, sparse local"]
    assert results["cascade_s"]["50 + 4"] == pytest.approx(50 * first + 4 * second)
    assert results["end_to_end_over_cascade"] == pytest.approx(seconds["large, end to end"] / (first + second))


def test_scaling_fits_a_power(tmp_path):
    results = attention.ScalingBenchmark(latent_frames=(1, 2, 4), height=12, width=18, heads=1, out=tmp_path, **QUICK).run()
    check_files(tmp_path, "scaling", results)
    rows = [measure.Row("x", (t, 1, 1), 3.0 * t**2, 1.0, 1.0) for t in (1, 2, 4)]
    assert attention.exponent(rows) == pytest.approx(2)
    assert set(results["time_is_tokens_to_the_power"]) == {"dense", "dense units", "ours, k 1: sdpa"}


def test_what_would_take_too_long_is_not_run_and_says_so():
    machine = measure.Machine("cpu", "float32", limit_s=1e-9)
    row = machine.row(measure.Work("slow", (1, 1, 1), flops=1e6), lambda: pytest.fail("it ran"))
    assert row.ms is None and row.note.startswith("not run: at least")


def test_a_baseline_beyond_the_limit_is_not_even_made():
    machine = measure.Machine("cpu", "float32", limit_s=1e-9)
    work = measure.Work("slow", (1, 2, 2), flops=1e6)
    row = attention.baseline_row(machine, work, lambda: pytest.fail("it was made"))
    assert row.ms is None and row.note.startswith("not run: at least")


def test_a_limit_that_leaves_nothing_of_ours_is_named(tmp_path):
    options = dict(grids=((1, 12, 12),), heads=1, head_dim=16, window=(1, 6, 6), unit=0, out=tmp_path, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="--limit-s is 1e-12, by which nothing of ours can run"):
        attention.AttentionBenchmark(**options, limit_s=1e-12).run()


def test_timings_and_floors_are_in_milliseconds():
    machine = measure.Machine("cpu", "float32", limit_s=60)
    x = torch.randn(512, 512)
    row = machine.row(
        measure.Work("product", (1, 1, 1), flops=2 * 512**3), lambda: x @ x, error=lambda out: float((out - x @ x).abs().max())
    )
    assert row.error == 0
    assert row.floor_ms == pytest.approx(2 * 512**3 / machine.flops_per_ms)
    assert row.tflops == pytest.approx(2 * 512**3 / (row.ms * 1e-3) / 1e12)
    assert machine.milliseconds(partial(sleep, 0.02)) >= 20


def test_selections_stay_on_the_grid_and_differ():
    config = AttentionConfig(window=(1, 4, 3), top_k=2)
    windows = config.windows(TokenLayout((3, 8, 9)), 0)
    selection = torch.stack([torch.arange(18), torch.arange(18).roll(1), torch.arange(18).roll(2)], -1).expand(1, 2, -1, -1)
    kinds = attention.selections(windows, selection)
    assert kinds["next frames"][0, 0, 0].tolist() == [0, 6, 12]
    assert kinds["all the same"][0, 1].tolist() == [[window, 6, 12] for window in range(18)]


def test_an_empty_grid_is_named():
    with pytest.raises(ValueError, match="--grids has 5 0 9, wanted tokens"):
        attention.AttentionBenchmark(grids=((5, 72, 126), (5, 0, 9))).run()


@pytest.mark.parametrize("grid", ["a", "5 72", "5 72 126 3", "5 72 x"])
def test_what_is_no_grid_is_refused(grid, capsys):
    with pytest.raises(SystemExit):
        command.main(["attention", "--grids", *grid.split()])
    assert "--grids" in capsys.readouterr().err


def test_the_last_line_is_json():
    table_2 = [sys.executable, "-m", "simplegvr_core", "benchmark", "table-2"]
    result = subprocess.run(table_2, cwd=REPO, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1])["sparse_local"]["paper_full_over_this"] == pytest.approx(1612.5 / 377.1)


def test_versions_do_without_git_and_without_names(monkeypatch):
    broken = SimpleNamespace(metadata={"Name": None}, version="1")
    right = list(versions.importlib.metadata.distributions())
    monkeypatch.setattr(versions.importlib.metadata, "distributions", lambda: [broken, *right])
    monkeypatch.setattr(versions, "which", lambda name: None)
    assert versions.versions()["commit"] == "unknown" and versions.versions()["torch"]
