"""Sharded training (FSDP2): losses and files of one process, whichever number of processes resumes; nothing lost when a save fails."""

import json
import os
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO, launcher
from safetensors.torch import load_file
from torch import nn

from simplegvr_core.networks.dit import DiTConfig
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.loop import LoopConfig, exclusive, fit
from simplegvr_core.training.losses import read_losses
from simplegvr_core.training.presets import PRESETS
from simplegvr_core.training.sharding import blocks
from simplegvr_core.training.state import Progress, TrainingState
from simplegvr_core.training.train import Train

pytestmark = pytest.mark.usefixtures("one_thread")
LOOP = LoopConfig(learning_rate=2e-3, warmup=2, schedule="constant", ema=0.9, save_every=2, cpu=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Train:
    """The smoke preset with its pairs; all runs of this file are below its folder."""
    out = tmp_path_factory.mktemp("sharded")
    BuildPairs(REPO / "assets", PRESETS["smoke"].vae, out / "pairs", "area", num_frames=9, spacing=9, scales=(2,)).run()
    return replace(PRESETS["smoke"], pairs=(out / "pairs",), out=out / "one", loop=LOOP)


def sharded(smoke: Train, out: Path, steps: int, *before: str, more: tuple = ()) -> subprocess.CompletedProcess:
    """Trains on two sharded processes.

    Args:
        smoke: The run.
        out: Its folder.
        steps: Number of steps.
        before: Words before the command.
        more: Options.
    """
    options = ["--preset", "smoke", "--pairs", smoke.pairs[0], "--held-out", smoke.pairs[0], "--out", out]
    loop = ["--loop.shard", "--loop.cpu", "--loop.steps", steps, "--loop.save-every", 2, "--loop.warmup", 2]
    rest = ["--loop.schedule", "constant", "--loop.ema", 0.9]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    command = list(map(str, [*before, *launcher(2), "-m", "simplegvr_core", "train", *options, *loop, *rest, *more]))
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def two(smoke) -> Path:
    """Folder of four steps on two sharded processes."""
    ran = sharded(smoke, smoke.out.with_name("two"), 4)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return smoke.out.with_name("two")


@pytest.fixture
def copy(two, tmp_path) -> Path:
    return shutil.copytree(two, tmp_path / "copy")


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor(read_losses(folder / "losses.jsonl"))


def saved(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("state*")}


def test_two_sharded_processes_have_the_losses_of_one_which_can_resume_them(smoke, two, copy):
    assert saved(two) == {"state_000004"}
    assert {path.name for path in (two / "state_000004").glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    assert sum(path.stat().st_size for path in two.rglob("__0_0.distcp")) < 0.6 * sum(path.stat().st_size for path in two.rglob("*.distcp"))
    assert {path.name for path in two.glob("*.mp4")} == {"preview_000002.mp4", "preview_000004.mp4"}
    replace(smoke, out=copy, loop=replace(LOOP, steps=4)).run()  # no step is left: what one process exports of the same state
    for name in ("dit.safetensors", "upsampler.safetensors"):
        exported, own = load_file(two / name), load_file(copy / name)
        assert exported.keys() == own.keys() and all(torch.equal(exported[key], own[key]) for key in own)
    replace(smoke, out=copy, loop=replace(LOOP, steps=6)).run()
    assert saved(copy) == {"state.pt"}
    replace(smoke, loop=replace(LOOP, steps=6)).run()
    torch.testing.assert_close(losses(copy), losses(smoke.out), atol=1e-5, rtol=0)
    files = [load_file(folder / "dit.safetensors") for folder in (copy, smoke.out)]
    torch.testing.assert_close(*files, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_two_sharded_processes_resume_one(smoke, tmp_path):
    one = replace(smoke, out=tmp_path / "mixed", loop=replace(LOOP, steps=2))
    one.run()
    ran = sharded(smoke, one.out, 4)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert saved(one.out) == {"state_000004"}
    whole = replace(one, out=tmp_path / "whole", loop=replace(LOOP, steps=4))
    whole.run()
    torch.testing.assert_close(losses(one.out), losses(whole.out), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def coarse(smoke) -> tuple[Train, tuple]:
    """A run with matrices large enough for moments of 8 bits, without an average, and its options."""
    sizes = DiTConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2)
    options = ("--loop.moments", "8bit", "--loop.ema", 0, "--dit.dim", 256, "--dit.ffn-dim", 512, "--dit.num-heads", 2)
    return replace(smoke, out=smoke.out.with_name("coarse"), dit=sizes, loop=replace(LOOP, moments="8bit", ema=0.0)), options


@pytest.mark.slow  # trains on two processes, twice, and resumes
def test_moments_of_8_bits_are_those_of_one_process_which_can_resume_them(coarse, tmp_path):
    run, options = coarse
    ran = sharded(run, tmp_path / "two", 4, more=options)
    assert ran.returncode == 0, ran.stderr[-3000:]
    replace(run, out=tmp_path / "two", loop=replace(run.loop, steps=6)).run()
    replace(run, loop=replace(run.loop, steps=6)).run()
    torch.testing.assert_close(losses(tmp_path / "two"), losses(run.out), atol=1e-5, rtol=0)
    moments = torch.load(run.out / "state.pt", weights_only=True)["optimizer"]["state"]
    assert any(hasattr(own["exp_avg"], "codes") for own in moments.values())


@pytest.mark.slow
def test_two_sharded_processes_resume_moments_of_8_bits_of_one(coarse, tmp_path):
    run, options = coarse
    replace(run, out=tmp_path / "mixed", loop=replace(run.loop, steps=2)).run()
    ran = sharded(run, tmp_path / "mixed", 4, more=options)
    assert ran.returncode == 0, ran.stderr[-3000:]
    replace(run, out=tmp_path / "whole", loop=replace(run.loop, steps=4)).run()
    torch.testing.assert_close(losses(tmp_path / "mixed"), losses(tmp_path / "whole"), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_base_in_float8_is_sharded(smoke, tmp_path):
    first = replace(smoke, out=tmp_path / "base", loop=replace(LOOP, steps=1)).run()
    files = ("--init-dit", first["dit"], "--init-upsampler", first["upsampler"])
    lora = {"lora_rank": 3, "frozen": "float8", "bf16": True, "init_dit": Path(first["dit"]), "init_upsampler": Path(first["upsampler"])}
    ran = sharded(smoke, tmp_path / "two", 4, more=(*files, "--lora-rank", 3, "--frozen", "float8", "--bf16"))
    assert ran.returncode == 0, ran.stderr[-3000:]
    replace(smoke, out=tmp_path / "two", loop=replace(LOOP, steps=6), **lora).run()
    replace(smoke, out=tmp_path / "one", loop=replace(LOOP, steps=6), **lora).run()
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_full_disk_at_a_sharded_save_keeps_the_state_before(smoke, copy):
    """The disk is full for files of more than a megabyte: the state's parts."""
    ran = sharded(smoke, copy, 6, "bash", "-c", 'ulimit -f 1024; exec "$@"', "-")
    assert ran.returncode != 0
    assert "state_000006 cannot be written (at step 6" in ran.stderr
    assert saved(copy) == {"state_000004"}
    ran = sharded(smoke, copy, 6)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert saved(copy) == {"state_000006"}
    assert len(losses(copy)) == 6


def test_a_killed_save_and_a_cut_one_are_not_taken_for_states(smoke, copy):
    """A folder has its metadata when all of its parts are written."""
    shutil.copytree(copy / "state_000004", copy / "state_000006", ignore=shutil.ignore_patterns(".metadata"))
    done = replace(smoke, out=copy, loop=replace(LOOP, steps=4)).run()
    assert done["steps"] == 4
    assert saved(copy) == {"state_000004"}


def test_a_damaged_part_is_named(smoke, copy):
    part = copy / "state_000004" / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state_000004 is damaged .*: delete it to begin anew"):
        replace(smoke, out=copy, loop=replace(LOOP, steps=6)).run()
    part.unlink()
    with pytest.raises(ValueError, match=r"state_000004 is damaged .*: delete it to begin anew"):
        replace(smoke, out=copy, loop=replace(LOOP, steps=6)).run()


def test_parts_of_other_options_or_of_another_network_are_refused(smoke, copy):
    with pytest.raises(ValueError, match="state_000004 was begun with noise_range"):
        replace(smoke, out=copy, noise_range=(0.1, 0.2)).run()
    run = copy / "state_000004" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"options": {}}))
    with pytest.raises(ValueError, match="state_000004 is the state of another network"):
        fit(nn.Linear(2, 3), SimpleNamespace(batch=1), replace(LOOP, steps=6), copy)


def test_a_full_disk_leaves_no_part(tmp_path):
    model = nn.Linear(1000, 100)
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainingState(model, optimizer, Progress(list(model.parameters()), 0.9), {}, tmp_path)
    state.save_parts(tmp_path / "state_000001", True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"state_000002 cannot be written \(at step 0.*the state before is kept"):
            state.save_parts(tmp_path / "state_000002", True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved(tmp_path) == {"state_000001"}
    assert state.saved() == tmp_path / "state_000001"


def test_two_runs_in_one_folder_are_refused(smoke, tmp_path):
    run = replace(smoke, out=tmp_path, loop=replace(LOOP, steps=2))
    with exclusive(tmp_path), pytest.raises(OSError, match=r"another run trains into .*: wait for its end, or choose another --out"):
        run.run()
    assert not (tmp_path / "losses.jsonl").exists()
    run.run()


def test_blocks_of_all_networks_are_sharded_apart(smoke):
    upsampler, dit = smoke.networks()
    assert set(blocks(nn.ModuleList([upsampler, dit]))) == {upsampler, dit, *dit.blocks, *upsampler.before, *upsampler.after}
