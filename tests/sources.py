"""Sources of training that workers read: processes that import them by the name of a file."""

import torch

from simplegvr_core.training.draws import READING, Draws


class Points:
    """Random points; `change` is applied to what is read from a step on."""

    def __init__(self, from_step=0, change=dict, batch=32):
        self.batch, self.from_step, self.change, self.seen = batch, from_step, change, []

    def read(self, draws):
        self.seen.append((draws.step, draws.samples))
        batch = {"x": torch.cat([torch.rand(1, 1, generator=generator) for generator in draws.generators(READING)])}
        return self.change(batch) if draws.step >= self.from_step else batch

    def finish(self, batch, draws):
        return batch


def lose(batch):
    raise ValueError("a shard is gone")


def no_noise(z_hr: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
    return {}
