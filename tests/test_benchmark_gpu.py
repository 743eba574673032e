"""`benchmark gpu` at toy size on a CPU: whole on a machine without the optional packages, and a valid file whatever is killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest
from conftest import REPO

from simplegvr_core.benchmark.gpu.items import FULL, TOY
from simplegvr_core.benchmark.gpu.summary import summary
from simplegvr_core.benchmark.gpu.worker import all_items

# from a bare machine with PyTorch
ABSENT = ["av", "tyro", "comfy", "diffusers", "stlpips_pytorch", "kornia", "scenedetect", "ncnn", "torchsummary", "IPython"]


@contextmanager
def running(folder: Path, minutes: float) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Yields the command's process, in a group of its own, and its file."""
    (folder / "sitecustomize.py").write_text(f"import sys\nfor name in {ABSENT}: sys.modules[name] = None")
    path = folder / "gpu.json"
    command = [sys.executable, "-m", "simplegvr_core", "benchmark", "gpu", "--device", "cpu", "--minutes", str(minutes), "--out", path]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=REPO, env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield process, path
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(process: subprocess.Popen, path: Path, reached: Callable[[dict], bool]) -> dict:
    """Returns the file once reached(file) holds; the file is valid whenever it is read."""
    end = monotonic() + 200
    while monotonic() < end and process.poll() is None:
        if path.exists() and reached(contents := json.loads(path.read_text())):
            return contents
        sleep(0.01)
    raise AssertionError(f"not reached, exit status {process.poll()}")


@pytest.mark.slow  # a whole benchmark on a CPU
def test_it_runs_whole_and_outlives_what_measures(tmp_path):
    with running(tmp_path, minutes=3) as (process, path):
        wait_for(process, path, lambda contents: (contents["running"] or "").startswith("kernels"))
        (worker,) = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        worker.kill()
        printed, _ = process.communicate(timeout=300)
    contents = json.loads(path.read_text())
    items = all_items(TOY)
    assert contents["finished"] and contents["running"] is None
    assert {f"{section}: {name}" for section, results in contents["sections"].items() for name in results} == {
        f"{item.section}: {item.name}" for item in items
    }
    results = {f"{section}: {name}": result for section, found in contents["sections"].items() for name, result in found.items()}
    (killed,) = [name for name, result in results.items() if "ended" in str(result.get("error"))]  # that one, or the next
    del results[killed]
    assert {name for name, result in results.items() if isinstance(result.get("error"), str)} == set()
    left_out = {name: result["not_run"] for name, result in results.items() if "not_run" in result}
    assert {"av is not installed", "diffusers is not installed"} < set(left_out.values())
    assert not any("time was over" in reason for reason in left_out.values())
    compared = [result for result in contents["sections"]["kernels"].values() if "passed" in result]
    assert len(compared) >= 14 and all(result["passed"] and result["same_windows"] for result in compared)
    assert contents["sections"]["operator"]["ours, k 1: sdpa, 4x8x12"]["error"] < 1e-5
    assert all(result["finite"] for result in contents["sections"]["training"].values())
    last = json.loads(printed.splitlines()[-1])
    assert last["file"] == str(path) and last["errors"] == [killed] and last["kernels_failed"] == []


def test_a_killed_run_leaves_a_valid_file(tmp_path):
    with running(tmp_path, minutes=3) as (process, path):
        wait_for(process, path, lambda contents: contents["sections"]["kernels"])
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        contents = json.loads(path.read_text())
    assert not contents["finished"] and contents["sections"]["kernels"] and contents["machine"]["sizes"] == "toy"
    assert summary(contents)["finished"] is False


def test_full_size_needs_four_minutes_and_every_item_has_a_name_of_its_own():
    items = all_items(FULL)
    assert 200 <= sum(item.seconds for item in items) <= 250
    assert len({(item.section, item.name) for item in items}) == len(items)


def test_plans_and_targets_are_judged():
    operator = {"ours, k 1: triton, 1x2x3": {"ms": 1.6}, "kernel alone, k 1, windows random: triton, 1x2x3": {"ms": 1.1}}
    operator |= {
        "dense: sdpa flash, 1x2x3": {"ms": 500.0},
        "dense: sdpa cudnn, 1x2x3": {"ms": 320.0},
        "dense: sdpa cudnn, 9x9x9": {"ms": 1.0},
    }
    network = {"a": {"plan_holds": False}, "b": {"plan_holds": True}, "c": {"error": "RuntimeError: x"}}
    kernels = {"a": {"passed": True, "error": {"out": 0.1}}, "b": {"passed": False, "error": {"out": 9.0}}}
    found = summary({"finished": True, "sections": {"kernels": kernels, "operator": operator, "network": network}})
    assert found["dense_over_operator"] == 200 and found["targets_met"] == {"kernel": False, "operator": True, "over_dense": True}
    assert found["plans_that_do_not_hold"] == ["network: a"] and found["errors"] == ["network: c"]
    assert found["kernels_passed"] == [1, 2] and found["kernels_failed"] == ["b"]
