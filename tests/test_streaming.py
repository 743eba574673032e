"""Streams along time: what comes chunk by chunk is what the whole clip gives, at any chunk length."""

import pytest
import torch
from conftest import random_weights
from torch import Tensor

from simplegvr_core.upsampler import VARIANTS, LatentUpsampler, UpsamplerConfig
from simplegvr_core.vae import TinyVAE, TinyVAEConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CHUNKS = {"1": [1] * 21, "2": [2] * 11, "3": [3] * 7, "5": [5] * 5, "mixed": [1, 5, 2, 7, 1, 3, 2]}


def small_upsampler(variant: str) -> LatentUpsampler:
    return random_weights(LatentUpsampler(UpsamplerConfig(6, VARIANTS[variant].expand_time, VARIANTS[variant].blocks)))


def small_vae() -> TinyVAE:
    return random_weights(TinyVAE(TinyVAEConfig(latent_width=6, latent_blocks=2, fine_width=5, fine_blocks=1, pixel_width=4)))


def latent(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def split(z: Tensor, lengths: list[int]) -> list[Tensor]:
    """Returns z in chunks of these lengths, as many as it fills."""
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return [z[:, :, start : start + length] for start, length in zip(starts, lengths, strict=False) if start < z.shape[2]]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch, frames", [(1, 1), (2, 2), (1, 5), (2, 21)])
@torch.inference_mode()
def test_upsampler_stream_is_the_whole_in_chunks(variant, batch, frames):
    upsampler, z = small_upsampler(variant), latent(batch, 16, frames, 5, 7)
    whole = upsampler(z, (11, 13))
    for lengths in CHUNKS.values():
        chunks = split(z, lengths)
        stream = list(upsampler.stream(iter(chunks), (11, 13)))
        assert [part.shape[2] for part in stream] == [chunk.shape[2] for chunk in chunks]
        torch.testing.assert_close(torch.cat(stream, 2), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch, frames", [(1, 1), (2, 2), (1, 5), (2, 21)])
@torch.inference_mode()
def test_decode_stream_is_the_whole_in_chunks(batch, frames):
    vae, z = small_vae(), latent(batch, 16, frames, 3, 5)
    whole = vae.decode(z)
    for lengths in CHUNKS.values():
        chunks = split(z, lengths)
        stream = list(vae.decode_stream(iter(chunks)))
        assert [part.shape[2] for part in stream] == [4 * chunk.shape[2] - 3 * (i == 0) for i, chunk in enumerate(chunks)]
        torch.testing.assert_close(torch.cat(stream, 2), whole, atol=1e-5, rtol=0)
