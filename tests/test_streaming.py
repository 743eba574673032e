"""Streams along time: chunk by chunk, and tile by tile, they give what the whole clip gives, in memory that does not grow."""

from dataclasses import replace

import pytest
import torch
from conftest import random_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from simplegvr_core.networks.tiny_vae import TinyVAE, TinyVAEConfig
from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler, UpsamplerConfig
from simplegvr_core.planning.tensor_memory import peak_bytes

pytestmark = pytest.mark.usefixtures("one_thread")
CHUNKS = {"1": [1] * 21, "2": [2] * 11, "3": [3] * 7, "5": [5] * 5, "mixed": [1, 5, 2, 7, 1, 3, 2]}


def small_upsampler(variant: str) -> LatentUpsampler:
    return random_weights(LatentUpsampler(replace(VARIANTS[variant], width=6)))


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


@pytest.mark.parametrize("batch, frames", [(1, 1), (2, 5)])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size, tile", [((14, 26), (5, 9)), ((31, 37), (11, 37)), ((7, 13), (3, 6)), ((5, 9), (2, 5))])
@torch.inference_mode()
def test_upsampler_tiles_are_the_whole_in_parts(variant, batch, frames, size, tile):
    """Ratios 2, 4.43 x 2.85, 1 and below 1; more tiles than one along at least one side."""
    upsampler, z = small_upsampler(variant), latent(batch, 16, frames, 7, 13)
    stream = upsampler.stream(split(z, [2, 1, 2]), size, tile)
    torch.testing.assert_close(torch.cat(list(stream), 2), upsampler(z, size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [1, 2, 5])
@torch.inference_mode()
def test_decode_stream_goes_on_from_a_saved_past(cut, tmp_path):
    z, past = latent(2, 16, 7, 3, 5), {}
    before = list(small_vae().decode_stream(split(z[:, :, :cut], [2, 3]), past))
    save_file(past, tmp_path / "past.safetensors")
    after = small_vae().decode_stream([z[:, :, cut:]], load_file(tmp_path / "past.safetensors"))
    torch.testing.assert_close(torch.cat([*before, *after], 2), small_vae().decode(z), atol=1e-5, rtol=0)


def run_through(stream) -> None:
    for _ in stream:
        pass


@pytest.mark.parametrize("tile", [None, (13, 9)])
def test_memory_of_the_upsampler_does_not_depend_on_the_length(tile):
    upsampler, z = small_upsampler("simplegvr"), latent(1, 16, 3, 5, 7)
    peaks = [peak_bytes(lambda n=n: run_through(upsampler.stream((z.clone() for _ in range(n)), (13, 17), tile))) for n in (3, 9)]
    assert peaks[0] == peaks[1]


def test_a_tile_needs_the_memory_of_its_part_of_the_frame():
    """Where it counts, on the network's device: what tiles keep between chunks lies on the CPU."""
    upsampler = LatentUpsampler(UpsamplerConfig(32), device="meta")
    z = torch.empty(1, 16, 2, 90, 160, device="meta")
    tile, frame = (
        peak_bytes(lambda tile=tile: run_through(upsampler.stream([z] * 2, (180, 320), tile)), "meta") for tile in ((45, 80), None)
    )
    assert tile < frame / 8


def test_memory_of_decoding_does_not_depend_on_the_length():
    vae, z = small_vae(), latent(1, 16, 3, 5, 7)
    peaks = [peak_bytes(lambda n=n: run_through(vae.decode_stream(z.clone() for _ in range(n)))) for n in (3, 12)]
    assert peaks[0] == peaks[1]
