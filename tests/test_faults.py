"""What goes wrong while the sampler runs in a real server: memory, interrupts, kill -9. And the soak, for a moment."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import aiohttp
import pytest
import torch
from client import WorkflowError
from conftest import REPO
from soak import memory_growth
from soak_cases import Case, workflow
from soak_runs import Server, Unexplained, check, compare

STEPS, TILES = 20, 3
UNLOADED = "Got an OOM, unloading all loaded models."  # ComfyUI's log when it recovers from an error of memory
WIDE = Case(
    fault="none",
    source=(1, 2, 4, 63),
    from_video=False,
    target=(8, 126),
    sampler={
        "model": ["gvr", 0], "size": "scale", "size.scale": 2.0, "seed": 1, "noise_seed": 2, "settings": "custom",
        "settings.steps": STEPS, "settings.cfg": 1.0, "settings.noise_augmentation": 0.1, "settings.denoise": 0.6,
        "tiling": "custom", "tiling.segment": 0, "tiling.tile_width": 432, "tiling.tile_height": 0, "color_match": 1.0, "resume": False,
    },
    sparse=False,
    draw=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A server that has just started, and the latent of its first prompt."""
    server = Server(tmp_path_factory.mktemp("fresh") / "base")
    latent, _ = server.run(workflow(WIDE))
    check(WIDE, latent)
    yield SimpleNamespace(server=server, latent=latent)
    server.stop()


def test_out_of_memory_at_step_7_of_20_in_tile_3_goes_on_in_smaller_tiles(fresh):
    latent, report = fresh.server.run(workflow(WIDE), out_of_memory_at=[6 * TILES + 2])
    assert "Out of memory with 2 latent frames of 432 x 64: continued with 2 latent frames of 288 x 64 at a time." in report
    assert not torch.equal(latent, fresh.latent)
    compare(latent, fresh.latent, 0.1)
    assert fresh.server.files() == []


def test_an_interrupt_and_an_error_inside_a_tile_leave_nothing_behind(fresh):
    started = time.monotonic()
    with pytest.raises(WorkflowError, match=r"^interrupted$"):
        fresh.server.run(workflow(WIDE), interrupt_after=2, seconds=0.5)
    assert time.monotonic() - started < 6
    assert fresh.server.files() == []
    log = fresh.server.base / "server.log"
    before = log.read_text().count(UNLOADED)
    message = r"SimpleGVRSampler: out of memory with the smallest box of \(2, 8, 36\) latent frames"
    with pytest.raises(WorkflowError, match=message) as raised:
        fresh.server.run(workflow(WIDE), most_cells=500)
    assert "you ran out of memory" in str(raised.value)  # ComfyUI's own tip
    assert log.read_text().count(UNLOADED) == before + 1
    assert fresh.server.files() == []
    latent, report = fresh.server.run(workflow(WIDE))
    assert "Out of memory" not in report
    assert torch.equal(latent, fresh.latent)


def test_a_killed_server_resumes_to_the_latent_of_an_unbroken_run(fresh):
    """The second run would die at the same call if it started over: it has fewer calls left than that."""
    case = replace(WIDE, sampler={**WIDE.sampler, "resume": True})
    kill_at = 11 * TILES + 1
    with pytest.raises((WorkflowError, aiohttp.ClientError)):
        fresh.server.run(workflow(case), kill_at=kill_at)
    assert fresh.server.process.wait(20) == -9
    assert fresh.server.files() != []
    fresh.server.stop()
    fresh.server.start()
    latent, report = fresh.server.run(workflow(case), kill_at=kill_at)
    assert "Resumed after step 11 of an earlier run." in report
    assert torch.equal(latent, fresh.latent)
    assert fresh.server.files() == []


@pytest.mark.slow
def test_a_short_soak_passes():
    command = [sys.executable, REPO / "tools" / "soak.py", "--prompts", "6", "--seed", "18"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["passed"] and result["probes_identical"]
    assert (result["prompts"], result["unexplained"], result["probes"]) == (6, 0, 2)


def test_the_soak_sees_wrong_sizes_values_and_differences():
    latent = torch.randn(1, 16, 2, 8, 126)
    check(WIDE, latent)
    with pytest.raises(Unexplained, match=r"wanted \(1, 16, 2, 8, 126\)"):
        check(WIDE, latent[..., 1:])
    with pytest.raises(Unexplained, match="finite: False"):
        check(WIDE, latent.index_fill(2, torch.tensor(1), torch.nan))
    with pytest.raises(Unexplained, match="differs by"):
        compare(latent, latent + 1e-6, 0)


def test_the_soak_compares_memory_after_warm_up():
    assert memory_growth([900.0, 950, 990, 1000, 1001, 1000, 1010, 1009, 1100, 1010, 1011, 1030]) == 0.011
    assert memory_growth([900.0, 950, 990, 1000, 1001]) is None
