"""super_resolve over a ray cluster on this machine: one process's result, whatever the number of workers, and a worker may die."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPO, random_weights
from safetensors.torch import load_file, save_file

from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler
from simplegvr_core.sampling.cluster import Networks, Pool, Traffic, Worker, ray_runtime, worker_pool
from simplegvr_core.sampling.comfyui_latent import read_latent, write_latent_of_comfyui
from simplegvr_core.sampling.latent_file import TensorFrames
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.sampling.super_resolve_to_file import super_resolve_to_file, torch_runtime
from simplegvr_core.super_resolve_command import SuperResolve
from simplegvr_core.tiling import Tiling

STEPS, SEGMENTS = 3, 5
Z_LR = torch.randn(1, 16, 7 + 5, 7, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def networks():
    model = SimpleGVRDiT(DiTConfig(dim=128, ffn_dim=64, num_heads=2, num_layers=2), AttentionConfig(window=(1, 3, 2), top_k=1, unit=2))
    sampling = SamplingConfig(steps=STEPS, denoise=0.7, cfg=2.0)
    prompt = torch.randn(1, 3, 4096, generator=torch.Generator().manual_seed(1))
    return Networks(random_weights(model), LatentUpsampler(VARIANTS["bilinear"]), sampling, Tiling((4, 12, 8), (2, 6, 4)), prompt)


def alone(networks: Networks, folder: Path) -> torch.Tensor:
    prompts = {"context": networks.context, "negative_context": networks.negative_context}
    runtime = torch_runtime(networks.model, networks.upsampler, like=Z_LR, sampling=networks.sampling, tiling=networks.tiling, **prompts)
    return super_resolve_to_file(folder, TensorFrames(Z_LR), (15, 21), runtime, sampling=networks.sampling, seed=3)[:]


def together(networks: Networks, folder: Path, workers: int) -> tuple[torch.Tensor, Traffic]:
    traffic = Traffic()
    with worker_pool(Worker, networks, device="cpu", workers=workers, address="local") as pool:
        runtime = ray_runtime(pool, networks, traffic)
        return super_resolve_to_file(folder, TensorFrames(Z_LR), (15, 21), runtime, sampling=networks.sampling, seed=3)[:], traffic


def forwards_into(path: Path, model: SimpleGVRDiT, dies_at: int | None) -> None:
    """Adds a line to path at each forward pass of the model, in whatever process it runs; one of them ends its process once."""

    def hook(*_: object) -> None:
        with path.open("a") as file:
            file.write(".")
        died = path.with_suffix(".died")
        if dies_at is not None and path.stat().st_size >= dies_at and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(hook)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_three_workers_give_what_one_process_gives_and_a_killed_one_costs_its_segment(networks, tmp_path):
    expected, count = alone(networks, tmp_path / "alone"), tmp_path / "count"
    forwards_into(count, networks.model, None)
    alone(networks, tmp_path / "again")
    whole, calls = count.stat().st_size, tmp_path / "calls"
    a_segment = whole // (STEPS * SEGMENTS)
    networks.model._forward_pre_hooks.clear()
    forwards_into(calls, networks.model, whole // 2)
    out, traffic = together(networks, tmp_path / "together", 3)
    assert calls.with_suffix(".died").exists()
    assert whole < calls.stat().st_size <= whole + a_segment
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    velocities = STEPS * SEGMENTS * 4 * 16 * 4 * 16 * 22  # bytes, of segments of 4 latent frames whose odd sides are padded
    assert (traffic.sent, traffic.received) == (2 * velocities, velocities)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(networks, tmp_path, workers):
    torch.testing.assert_close(together(networks, tmp_path / "n", workers)[0], alone(networks, tmp_path / "1"), atol=1e-6, rtol=0)


def test_block_causal_segments_are_refused(networks):
    networks.model.attention = BlockCausalConfig()
    with pytest.raises(ValueError, match="look back on those before, so workers cannot share them: leave out --workers"):
        ray_runtime(Pool([], iter(())), networks, Traffic())


def write_clips(folder: Path, *frames: int) -> None:
    for name, count in zip("abc", frames, strict=False):
        z = torch.randn(1, 16, count, 4, 6, generator=torch.Generator().manual_seed(count))
        write_latent_of_comfyui(folder / f"{name}.latent", z, {})


def test_a_latent_is_written_as_load_latent_reads_it(tmp_path):
    write_clips(tmp_path, 3)
    assert set(load_file(tmp_path / "a.latent")) == {"latent_tensor", "latent_format_version_0"}
    torch.testing.assert_close(read_latent(tmp_path / "a.latent"), torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(3)))


def test_a_folder_of_latents_is_super_resolved_once(tmp_path):
    write_clips(tmp_path / "in", 3, 1)
    command = SuperResolve(tmp_path / "in", tmp_path / "out", scale=2.0, device="cpu", dtype="float32")
    assert command.run()["made"] == 2
    assert read_latent(tmp_path / "out" / "a.latent").shape == (1, 16, 3, 8, 12)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.latent", "b.latent"]
    assert command.run()["made"] == 0
    save_file({"latent_tensor": torch.ones(1, 16, 1, 4, 6)}, tmp_path / "in" / "b.latent")
    assert command.run()["made"] == 1
    assert replace(command, steps=1).run()["made"] == 2


REFUSED = {"none": "which does not exist", ".": "is inside the folder of", "empty": r"has no file \.latent or \.safetensors"}


@pytest.mark.parametrize("latents", REFUSED)
def test_what_cannot_be_super_resolved_is_refused(tmp_path, latents):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=REFUSED[latents]):
        SuperResolve(tmp_path / latents, tmp_path / "out").run()


@pytest.mark.slow
def test_the_command_over_a_cluster_gives_the_files_of_one_process(tmp_path):
    write_clips(tmp_path / "in", 12, 3, 2)
    command = [sys.executable, "-m", "simplegvr_core", "super-resolve", "--latents", tmp_path / "in", "--segment", "10"]
    for name, options in {"alone": (), "together": ("--workers", "2")}.items():
        line = subprocess.run([*command, "--out", tmp_path / name, *options], cwd=REPO, capture_output=True, text=True, check=True).stdout
        assert json.loads(line.splitlines()[-1])["made"] == 3
    for clip in "abc":
        first, second = (read_latent(tmp_path / name / f"{clip}.latent") for name in ("alone", "together"))
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
