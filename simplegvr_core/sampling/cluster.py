"""Workers of a ray cluster, and super_resolve on them: the segments of a step are independent, their velocities are blended centrally.

Only this process reads and writes files. A worker that dies is started again and repeats what it was given last.
B batch, T latent frames, h, w low-resolution latent pixels, H, W those of the target; latents are normalised.
"""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..networks.dit import SimpleGVRDiT
from ..networks.slab_memory import slab_memory
from ..networks.upsampler import Upsampler
from ..tiling import Tiling
from .latent_file import LatentFile, LatentFrames
from .refine import Refinement, Segment, TiledVelocity, padded_velocity, refine
from .super_resolve import UPSAMPLER_FRAMES, SamplingConfig, guided_network, takes_condition, whole
from .super_resolve_to_file import Append, Runtime

RESTARTS = 3  # of one worker
AHEAD = 2  # calls that each worker has been given: one runs, the next one's input is there


@dataclass(frozen=True)
class Pool:
    """Actors of one class, called in turn; threads may share it.

    Attributes:
        actors: Handles of ray.
        turn: The actor that is called next.
    """

    actors: list[Any]
    turn: Iterator[Any]

    def in_order(self, method: str, inputs: Iterable[Any]) -> Iterator[Any]:
        """Yields the results of a method of the actors, in the order of its inputs.

        Args:
            method: Its name.
            inputs: An argument for each call; read as workers become free.
        """
        import ray

        waiting: deque[Any] = deque()
        for each in inputs:
            waiting.append(getattr(next(self.turn), method).remote(each))
            del each
            if len(waiting) == AHEAD * len(self.actors):
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())


@contextmanager
def cluster(device: str, workers: int | None, address: str) -> Iterator[int]:
    """Yields the number of actors that a ray cluster has room for; it is left, or stopped where it was started, at the end.

    Args:
        device: "cpu": an actor has one CPU; else it has one GPU.
        workers: Number of actors; by default one for each CPU of the cluster, or each GPU.
        address: Address of a running cluster, or "local" to start one on this machine.

    Raises:
        ImportError: ray is not installed.
    """
    try:
        import ray  # optional: only clusters need it
    except ImportError as error:
        raise ImportError("--workers and --ray need ray, which is not installed: run `python -m pip install ray`") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # an actor that restarts needs its argument, which this process has
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    own |= {"num_cpus": workers} if address == "local" and device == "cpu" else {}
    package = {"py_modules": [str(Path(__file__).parents[1])]}
    ray.init(address, runtime_env=package, logging_level=logging.ERROR, log_to_driver=False, **own)
    try:
        yield workers or int(ray.cluster_resources()["CPU" if device == "cpu" else "GPU"])
    finally:
        ray.shutdown()


@contextmanager
def worker_pool(worker: type, argument: Any, *, device: str, workers: int | None, address: str) -> Iterator[Pool]:
    """Yields a pool of actors of a ray cluster. The other arguments and errors are those of cluster.

    Args:
        worker: Class of the actors.
        argument: What each is made with; sent once to each machine.
    """
    with cluster(device, workers, address) as number:
        import ray

        options: dict[str, Any] = {"num_gpus": int(device != "cpu"), "max_restarts": RESTARTS, "max_task_retries": RESTARTS}
        remote, shared = ray.remote(num_cpus=1, **options)(worker), ray.put(argument)
        actors = [remote.remote(shared) for _ in range(number)]
        yield Pool(actors, cycle(actors))


@dataclass(frozen=True)
class Networks:
    """What every worker has.

    Attributes:
        model: The DiT.
        upsampler: The latent upsampler.
        sampling: The guidance scale is read.
        tiling: Boxes that the model is given one at a time; None is the whole clip.
        context: Text features (B, S, text_dim) of the prompt; None is the null prompt.
        negative_context: Those of the negative prompt; None is the null prompt.
        device: PyTorch's name of a worker's device.
        dtype: Of the networks.
    """

    model: SimpleGVRDiT
    upsampler: Upsampler
    sampling: SamplingConfig
    tiling: Tiling | None = None
    context: Tensor | None = None
    negative_context: Tensor | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


class Worker:
    """A process with the networks on its device."""

    def __init__(self, networks: Networks):
        self.like = torch.zeros((), device=networks.device, dtype=networks.dtype)
        model, self.upsampler = networks.model.to(self.like), networks.upsampler.to(self.like)
        prompts = (None if prompt is None else prompt.to(self.like) for prompt in (networks.context, networks.negative_context))
        network = guided_network(model, networks.sampling.cfg, *prompts, like=self.like)
        self.velocity = TiledVelocity(network, networks.tiling or whole(model), model.attention.alignment)

    @torch.inference_mode()
    def predict(self, segment: Segment) -> Tensor:
        """Returns the velocity of a segment."""
        return padded_velocity(self.velocity, segment)

    @torch.inference_mode()
    def upsample(self, z_lr: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """Yields the frames of the upsampled latent, in order."""
        for z in self.upsampler.stream((part.to(self.like) for part in z_lr.split(UPSAMPLER_FRAMES, dim=2)), size):
            yield z.float().cpu()


@dataclass
class Traffic:
    """Bytes of latents that were sent to workers, and of velocities that came back."""

    sent: int = 0
    received: int = 0


@dataclass(frozen=True)
class ClusterVelocity:
    """The velocities of a clip's segments, computed by the workers of a pool.

    Attributes:
        pool: Actors of the class Worker.
        tiling: Its segments are what a worker is given at a time.
        traffic: Counted.
    """

    pool: Pool
    tiling: Tiling
    traffic: Traffic

    def of_segments(self, segments: Iterable[Segment]) -> Iterator[Tensor]:
        def counted(segment: Segment) -> Segment:
            self.traffic.sent += sum(z.nbytes for z in (segment.z, segment.condition) if z is not None)
            return segment

        for v in self.pool.in_order("predict", map(counted, segments)):
            self.traffic.received += v.nbytes
            yield v


def ray_runtime(pool: Pool, networks: Networks, traffic: Traffic) -> Runtime:
    """Returns the runtime of the networks of a pool's workers, for super_resolve_to_file.

    Args:
        pool: Actors of the class Worker.
        networks: What they were made with.
        traffic: Counted while the runtime is used.

    Raises:
        ValueError: The model's segments depend on each other, or denoise is 1 and it takes no condition.
    """
    if slab_memory(networks.model.attention, 1) is not None:
        raise ValueError("segments of block-causal attention look back on those before, so workers cannot share them: leave out --workers")

    def upsample(z_lr: LatentFrames, size: tuple[int, int], append: Append) -> None:
        import ray

        for z in next(pool.turn).upsample.options(num_returns="streaming").remote(z_lr[0 : z_lr.shape[2]], size):
            append(ray.get(z))

    def integrate(refinement: Refinement) -> LatentFile:
        return refine(ClusterVelocity(pool, networks.tiling or whole(networks.model), traffic), refinement)

    return Runtime(upsample, integrate, takes_condition(networks.model, networks.sampling), networks.upsampler.config.latents)
