"""How a training run is fed: time spent waiting for data, data read by each process, losses of one, two and four processes.

The network is small and takes a fixed time for each sample, as an accelerator would, in which the CPU is free to read. The pairs are
latents of noise. "before" is the way without workers in which every process reads the whole batch and uses its part.
"""

import json
import os
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, multiprocessing, nn
from torch.multiprocessing.spawn import start_processes

from ..training.batches import Crop, NoisedPairs, PairSampler
from ..training.draws import Batch, Draws
from ..training.loop import LoopConfig, Run
from ..training.loss import FlowNoise
from ..training.pairs import Pairs
from ..training.reader import START_METHOD

PAIRS, SCALE, EXTENT = 24, 2, (5, 48, 48)  # in the folder; T, H, W of each
WARMUP = 4  # steps that are not timed: workers start


class TimedNetwork(nn.Module):
    """Predicts the velocity by one convolution; takes a fixed time for each sample."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.network = seconds, nn.Conv3d(16, 16, 1, bias=False)
        nn.init.eye_(self.network.weight.data[..., 0, 0, 0])

    def forward(self, *, z_hr: Tensor, noise: Tensor, sigma: Tensor, **_: Tensor) -> Tensor:
        end = time.monotonic() + self.seconds * len(z_hr)
        loss = (self.network(z_hr + sigma * (noise - z_hr)) - (noise - z_hr)).square().mean()
        time.sleep(max(0.0, end - time.monotonic()))
        return loss


class CountedSampler(PairSampler):
    """Counts the pairs it reads, in all processes."""

    def __init__(self, folder: Path, crop: Crop):
        super().__init__((folder,), crop)
        self.read_pairs = multiprocessing.get_context(START_METHOD).Value("q", 0)

    def cut(self, pairs: Pairs, i: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        with self.read_pairs:
            self.read_pairs.value += 1
        return super().cut(pairs, i, generator)


@dataclass(frozen=True)
class WholeBatch:
    """A Source of which every process makes the whole batch and uses its part."""

    source: NoisedPairs

    @property
    def batch(self) -> int:
        return self.source.batch

    def read(self, draws: Draws) -> dict[str, Any]:
        whole = replace(draws, samples=range(draws.total))
        own = slice(draws.samples.start, draws.samples.stop)
        read = self.source.read(whole)
        del read["skipped"]
        return {name: tensor[own] for name, tensor in self.source.finish(read, whole).items()}

    def finish(self, batch: Batch, draws: Draws) -> Batch:
        return batch


@dataclass(frozen=True)
class TrainingBenchmark:
    """Measures the share of a step spent waiting for data, and what one, two and four processes read and compute."""

    steps: int = 24
    """Optimizer steps of each run."""
    batch: int = 8
    """Samples of a step, over all processes; a multiple of 4."""
    seconds: float = 0.2
    """Time that the network takes for a batch on one process."""
    workers: int = 1
    """Processes that read ahead, for each training process."""
    out: Path = Path("out/benchmark/training.json")
    """File for the results."""

    def run(self) -> dict:
        """Measures.

        Returns:
            {"waiting_share": of a step on one process, "own_share": pairs read by a process over its part, the largest, "loss_difference":
            largest difference of a loss between one process and two or four, "seconds_per_step": {processes: s}, "runs": what each
            run measured, "before" included}.

        Raises:
            ValueError: batch is no multiple of 4 or steps are too few.
        """
        if self.batch % 4 or self.steps <= WARMUP:
            raise ValueError(f"--batch is {self.batch} and --steps {self.steps}, wanted a multiple of 4, and more than {WARMUP} steps")
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(Path(folder) / "pairs")
            runs = {f"{way} {count}": self.measure(way, count, Path(folder)) for count in (1, 2, 4) for way in ("before", "after")}
        after = {count: runs[f"after {count}"] for count in (1, 2, 4)}
        differences = [abs(a - b) for count in (2, 4) for a, b in zip(after[1]["losses"], after[count]["losses"], strict=True)]
        result = {
            "runs": {name: {key: value for key, value in run.items() if key != "losses"} for name, run in runs.items()},
            "seconds_per_step": {count: run["seconds_per_step"] for count, run in after.items()},
            "waiting_share": after[1]["waiting_share"],
            "own_share": max(run["own_share"] for run in after.values()),
            "loss_difference": max(differences),
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(result, indent=1))
        return result

    def measure(self, way: str, processes: int, folder: Path) -> dict:
        """Returns the waiting share, own share, seconds per step and losses of a run.

        Args:
            way: "before" or "after".
            processes: Number of training processes.
            folder: Folder with the pairs; the run gets one below it.
        """
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        out = folder / f"{way}_{processes}"
        start_processes(train, (processes, port, self, way, folder / "pairs", out), nprocs=processes, start_method="spawn")
        measured = [json.loads((out / f"measured_{process}.json").read_text()) for process in range(processes)]
        losses = [json.loads(line)["loss"] for line in (out / "losses.jsonl").read_text().splitlines()]
        return {name: max(process[name] for process in measured) for name in measured[0]} | {"losses": losses}


def train(process: int, processes: int, port: int, benchmark: TrainingBenchmark, way: str, pairs: Path, out: Path) -> None:
    """Trains in one of several processes and writes what it measured."""
    if processes > 1:
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": processes, "RANK": process, "LOCAL_RANK": process}
        os.environ.update({name: str(value) for name, value in address.items()})
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun has it; accelerate would give each process every core
    torch.set_num_threads(1)
    sampler = CountedSampler(pairs, Crop(num_frames=4 * EXTENT[0] - 3, size=(EXTENT[1] // 2, EXTENT[2] // 2), batch=benchmark.batch))
    source = NoisedPairs(sampler, 64, FlowNoise((0.3, 0.6), None))
    loop = LoopConfig(steps=benchmark.steps, warmup=1, schedule="constant", cpu=True, workers=benchmark.workers, tracker="none")
    if way == "before":
        source, loop = WholeBatch(source), replace(loop, workers=0)
    run = Run(TimedNetwork(benchmark.seconds / benchmark.batch), source, loop, out, options={})
    start = waited = 0.0
    for step in range(benchmark.steps):
        if step == WARMUP:
            start, waited = time.monotonic(), run.batches.waited
        run.step()
    run.settle()
    seconds = time.monotonic() - start
    measured = {
        "waiting_share": (run.batches.waited - waited) / seconds,
        "own_share": sampler.read_pairs.value / (benchmark.steps * benchmark.batch / processes),
        "seconds_per_step": seconds / (benchmark.steps - WARMUP),
    }
    (out / f"measured_{process}.json").write_text(json.dumps(measured))
    if processes > 1:
        torch.distributed.destroy_process_group()


def write_pairs(folder: Path) -> None:
    """Writes a folder of pairs of noise."""
    folder.mkdir()
    generator, tensors, entries = torch.Generator().manual_seed(0), {}, []
    for i in range(PAIRS):
        z_hr = torch.randn(16, *EXTENT, generator=generator)
        tensors |= {f"{i:05d}.z_hr": z_hr.half(), f"{i:05d}.z_lr": z_hr[..., ::SCALE, ::SCALE].half().contiguous()}
        entries.append({"id": i, "shard": "shard_00000.safetensors", "video": f"{i}.mp4", "frame": 0, "scale": SCALE})
    save_file(tensors, folder / "shard_00000.safetensors")
    (folder / "pairs.json").write_text(json.dumps({"pairs": entries}))
