"""`benchmark chain`: every route is measured by stage; forecasts follow the work; the ratio is of ours to the pixel route."""

import json

import comfyui as setup
import pytest
import torch

from simplegvr_core.benchmark import baselines, chain, chain_routes, chain_stages
from simplegvr_core.benchmark.chain_routes import Run
from simplegvr_core.benchmark.chain_stages import Meter, Scene
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig

SMALL = {"size": (48, 80), "num_frames": 5, "stacks": ("gvr_tiny",), "device": "cpu", "dtype": "float32"}


@pytest.fixture
def in_this_process(monkeypatch):
    """Measures here, and runs neither SPAN, BasicVSR nor SeedVR2, which a machine may have."""

    def unavailable(*_):
        raise baselines.Unavailable("left out of the test")

    monkeypatch.setattr(chain, "measure_apart", Run.measure)
    for name in ("decode, SPAN", "decode, BasicVSR", "SeedVR2 3B, its transformer alone"):
        monkeypatch.setitem(chain_routes.ROUTES, name, unavailable)


def test_each_route_is_measured_by_stage(tmp_path, in_this_process):
    results = chain.ChainBenchmark(out=tmp_path, **SMALL).run()
    routes = results["gvr_tiny"]["routes"]
    stages = {name: [stage["name"] for stage in route["stages"]] for name, route in routes.items()}
    assert stages[chain.OURS] == ["upsample the latent", "refine", "decode", "save"]
    assert stages[chain.PIXELS] == ["decode the low resolution", "resize the pixels", "encode", "refine", "decode", "save"]
    assert routes["decode, SPAN"]["not_run"] == "left out of the test"
    for route in routes.values():
        assert route["seconds"] is None or route["seconds"] == pytest.approx(sum(stage["whole_s"] for stage in route["stages"]))
    assert results["ratio"] == pytest.approx(routes[chain.OURS]["seconds"] / routes[chain.PIXELS]["seconds"])
    assert results["ours_s"] == routes[chain.OURS]["seconds"] and results["pixel_route_s"] == routes[chain.PIXELS]["seconds"]
    (end_to_end,) = (route["stages"][0] for name, route in routes.items() if name == "text-to-video at the target's size")
    assert end_to_end["whole_s"] == pytest.approx(50 * end_to_end["seconds"])
    assert json.loads((tmp_path / "chain.json").read_text())["ratio"] == results["ratio"]
    assert "not run: left out of the test" in (tmp_path / "chain.md").read_text()
    assert (tmp_path / "chain.png").stat().st_size > 1000


def test_both_routes_refine_with_the_same_network_and_make_the_same_size(monkeypatch):
    saved = []
    monkeypatch.setattr(chain_routes, "save", lambda images, meter: saved.append(images))
    scene = chain_stages.scene((48, 80), 2.0, 5)
    assert scene == Scene((2, 3, 5), (2, 6, 10))
    for route in (chain_routes.ours, chain_routes.pixels, chain_routes.bicubic_only):
        stack = chain_routes.tiny_stack(scene, torch.device("cpu"), torch.float32)
        with torch.inference_mode():
            route(stack, scene, Meter(torch.device("cpu"), scene, scene))
    assert [images.shape for images in saved] == [(5, 48, 80, 3)] * 3
    assert (saved[0].float() - saved[1].float()).abs().mean() < 12  # the same clip


def test_forecasts_grow_with_the_work():
    small, large = Scene((2, 3, 5), (2, 6, 10)), Scene((20, 6, 10), (20, 12, 20))
    assert chain_stages.by_frames(small, large) == pytest.approx(4 * 77 / 5)
    assert chain_stages.by_latent(small, large) == pytest.approx(40)
    dense = chain_stages.by_flops(DiTConfig(num_layers=2), AttentionConfig(kind="full", unit=None))
    large = Scene((20, 60, 100), (20, 120, 200))
    smaller = Scene((5, 60, 100), (5, 120, 200))
    assert 4 < dense(smaller, large) < 16  # linear layers grow 4 times, attention 16


def test_a_stage_is_multiplied_to_the_whole():
    meter = Meter(torch.device("cpu"), Scene((2, 3, 5), (2, 6, 10)), Scene((2, 3, 5), (2, 12, 10)))
    assert meter("a", lambda: torch.ones(2**22).sum(), repeats=3) == 2**22
    (stage,) = meter.stages
    assert stage.whole_s == pytest.approx(6 * stage.seconds)
    assert stage.peak_gb is None or stage.peak_gb > 0.01


@pytest.mark.slow
def test_wans_sizes_run(monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(setup.find_comfyui(setup.HOME)))
    scene = chain_stages.scene((32, 48), 2.0, 5)
    for route in (chain.OURS, chain.PIXELS):
        outcome = Run("wan", route, scene, scene, "cpu", "float32").measure()
        assert outcome["not_run"] == "" and all(stage.seconds > 0 for stage in outcome["stages"])
