"""Counted memory: what storages mean, the same on every device, and close to what a process really takes."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import ATTENTION, DIT, REPO, random_weights

from simplegvr_core.benchmark import memory as benchmark_memory
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import SimpleGVRDiT
from simplegvr_core.networks.tiny_vae import TinyVAE, TinyVAEConfig
from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler
from simplegvr_core.planning.tensor_memory import StorageCount, peak_bytes

ATTENTIONS = [
    AttentionConfig(kind="full", unit=None),
    AttentionConfig(kind="full", unit=5),
    AttentionConfig(kind="swin", window=(1, 4, 3)),
    AttentionConfig(window=(1, 4, 3), top_k=2),
    AttentionConfig(window=(1, 4, 3), unit=None, radius=1),
]


def test_a_storage_counts_once_while_it_lives():
    x = torch.zeros(100)

    def chain() -> None:
        y = x + 1  # 400
        y = y.view(10, 10) + 1  # the first lives until the second is there
        del y
        x.add_(1)

    assert peak_bytes(chain) == 800
    assert peak_bytes(lambda: [x + i for i in range(5)]) == 2000
    assert peak_bytes(x.view(10, 10).T.unbind) == 0
    assert peak_bytes(lambda: torch.tensor([1.0, 2.0, 3.0])) == 12
    assert peak_bytes(lambda: x.to("meta"), device="cpu") == 0


def test_parts_of_composite_operations_count():
    x, layer = torch.zeros(3, 5, 8, dtype=torch.bfloat16), torch.nn.Linear(8, 16, dtype=torch.bfloat16)
    assert peak_bytes(lambda: layer(x)) == 3 * 5 * 16 * 2
    assert peak_bytes(lambda: F.rms_norm(x, (8,))) > 3 * 5 * 8 * 4  # computed in float32


def dit_run(attention: AttentionConfig, device: str, dtype: torch.dtype, shape=(2, 32, 7, 18, 26)):
    model = SimpleGVRDiT(DIT, attention, device=device, dtype=dtype)
    if device == "cpu":
        random_weights(model)
    z, context = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(2, 7, DIT.text_dim, device=device, dtype=dtype)
    run = partial(model, z, torch.full((2,), 500.0, device=device), context)
    peak_bytes(run)  # cuts the windows, which the host's memory keeps
    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ATTENTIONS, ids=lambda a: f"{a.kind}-{a.unit}")
def test_dit_counts_the_same_on_meta_and_on_a_real_device(attention, dtype):
    real, meta = (peak_bytes(dit_run(attention, device, dtype), device=device) for device in ("cpu", "meta"))
    assert meta == real > 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_forward_pass_leaves_nothing_on_the_device(device):
    run = dit_run(ATTENTION, device, torch.float32)
    with torch.inference_mode(), StorageCount(device) as count:
        velocity = run()
        assert count.alive == velocity.untyped_storage().nbytes()
        del velocity
        assert count.alive == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_upsampler_counts_the_same_on_meta_and_on_a_real_device(variant):
    counts = []
    for device in ("cpu", "meta"):
        upsampler, z = LatentUpsampler(VARIANTS[variant], device=device), torch.zeros(2, 16, 3, 5, 7, device=device)
        counts.append(peak_bytes(lambda upsampler=upsampler, z=z: upsampler(z, (15, 22))))
    assert counts[0] == counts[1] > 2 * 16 * 3 * 15 * 22 * 4


def test_tiny_vae_counts_the_same_on_meta_and_on_a_real_device():
    counts = []
    for device in ("cpu", "meta"):
        vae, z = TinyVAE(TinyVAEConfig(), device=device), torch.zeros(1, 16, 3, 5, 7, device=device)
        counts.append(peak_bytes(lambda vae=vae, z=z: vae.decode(z)))
    assert counts[0] == counts[1] > 3 * 9 * 40 * 56 * 4


GROWTH = """
import psutil, torch
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.planning.tensor_memory import peak_bytes
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
torch.set_num_threads(1)
model = SimpleGVRDiT(DiTConfig(dim=256, ffn_dim=1024, num_heads=2, num_layers=1, text_dim=64), AttentionConfig())
for p in model.parameters():
    torch.nn.init.normal_(p, std=0.02)
def run(frames):
    z = torch.zeros(1, 32, frames, 60, 80)
    return lambda: model(z, torch.tensor([500.0]), torch.zeros(1, 1, 64))
with torch.inference_mode():
    run(1)()
    long = run(6)
    before = psutil.Process().memory_info().rss
    long()
growth = 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) - before  # ru_maxrss has the parent's
print(growth, peak_bytes(long))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_process_grows_by_what_is_counted():
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system
    ran = subprocess.run([sys.executable, "-c", GROWTH], cwd=REPO, capture_output=True, text=True, check=True, env=env)
    growth, counted = map(int, ran.stdout.split())
    assert counted > 80e6
    assert growth == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("part", benchmark_memory.PARTS)
def test_benchmark_runs_each_part_streamed_and_whole(part):
    cases = [benchmark_memory.Case(part, 3, streamed, (6, 8), 10, "cpu") for streamed in (True, False)]
    results = [case.measure() for case in cases]
    assert all(result["peak"] > result["above"] >= 0 and result["seconds"] > 0 for result in results)
    assert benchmark_memory.counted(cases[0]) > 3 * 16 * 6 * 8 * 4
    rows = [vars(case) | result for case, result in zip(cases, results, strict=True)]
    whole = [{"part": part, "latent_frames": 3, "bytes": 1_000_000}]
    ratios = {"ratio": {part: 1.01}, "ratio_above_start": {part: 1.05}}
    table = benchmark_memory.table({"rows": rows, "whole_clip_counted": whole, **ratios})
    assert table.endswith(f"{part} 1.010 (1.050 above the start).")
    for words in ("| streamed |", "| whole clip at once |", f"| {part} | 3 | whole clip at once, counted | - | 1 | - |"):
        assert words in table


def test_benchmark_names_lengths_it_cannot_compare():
    for lengths in ((20,), (200, 20), (20, 20), (), (0, 5)):
        with pytest.raises(ValueError, match=r"--latent-frames is .*, wanted two or more lengths, the shortest first, such as 20 200"):
            benchmark_memory.MemoryBenchmark(latent_frames=lengths).run()
    assert benchmark_memory.ratio([100, 90, 104]) == 1.04


def test_a_part_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    case = benchmark_memory.Case("upsampler", 3, True, (6, 8), 10, "cpu")
    held = torch.ones(400_000_000, dtype=torch.uint8)  # of this process, not of the measured one
    own, apart = case.measure(), benchmark_memory.measure_apart(case)
    assert apart["peak"] + len(held) // 2 < own["peak"]
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
