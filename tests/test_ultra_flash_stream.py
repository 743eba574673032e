"""Block-causal attention and Ultra Flash's upsampler in segments: equal to the whole clip, in memory that does not grow."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import random_weights

from simplegvr_core.networks.block_causal import attend_blocks
from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.slab_memory import SlabMemory
from simplegvr_core.networks.ultra_upsampler import UltraUpsampler, UltraUpsamplerConfig
from simplegvr_core.networks.windows import TokenLayout
from simplegvr_core.planning.tensor_memory import peak_bytes
from simplegvr_core.sampling.latent_file import TensorFrames
from simplegvr_core.sampling.refine import TiledVelocity
from simplegvr_core.sampling.super_resolve import SamplingConfig, super_resolve
from simplegvr_core.sampling.super_resolve_to_file import super_resolve_to_file, torch_runtime
from simplegvr_core.tiling import OutOfMemory, Tiling

pytestmark = pytest.mark.usefixtures("one_thread")
ATTENTION = BlockCausalConfig(window=(2, 2, 2), local_range=3, budget=9)
DIT = DiTConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=3, text_dim=24, exact_time=True)
UPSAMPLER = UltraUpsamplerConfig(width=6, blocks=2)
ONE_STEP = SamplingConfig(steps=1, cfg=1.0, noise_augmentation=0.0)


def latent(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(attention: BlockCausalConfig = ATTENTION) -> SimpleGVRDiT:
    return random_weights(SimpleGVRDiT(DIT, attention))


def upsampler(config: UltraUpsamplerConfig = UPSAMPLER, dtype: torch.dtype = torch.float32) -> UltraUpsampler:
    model, generator = UltraUpsampler(config, dtype=dtype), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


@pytest.mark.parametrize("frames, length", [(15, 6), (21, 6), (21, 12), (21, 18), (120, 30)])
@torch.inference_mode()
def test_segments_give_what_the_whole_clip_gives(frames, length):
    model, z, context = network(), latent(2, 32, frames, 7, 10), latent(2, 3, 24)
    timestep = torch.full((2,), 1000.0)
    whole, memory, parts = model(z, timestep, context), SlabMemory(ATTENTION, frames), []
    for first in range(0, frames, length):
        with memory.segment(first):
            part = z[:, :, first : first + length]
            parts.append(model(part, timestep, context, memory.attend, token_order=memory.token_order, first_frame=first))
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=0)
    alone = torch.cat([model(part, timestep, context) for part in z.split(length, dim=2)], dim=2)
    assert (alone - whole).abs().max() > 1e-2  # the past is seen


@pytest.mark.parametrize(
    "config", [replace(ATTENTION, groups=(4, 6)), replace(ATTENTION, groups=(3, 5), memory=2), replace(ATTENTION, memory=None)]
)
@torch.inference_mode()
def test_segments_of_any_groups_give_what_the_whole_gives(config):
    grid, (q, k, v) = (17, 5, 3), [latent(1, 17 * 15, 2, 16, seed=seed) for seed in range(3)]
    whole, memory, parts, first = attend_blocks(q, k, v, TokenLayout(grid), config), SlabMemory(config, 17), [], 0
    for frames in config.group_lengths(17):
        layout, tokens = TokenLayout((frames, *grid[1:]), first_frame=first), slice(15 * first, 15 * (first + frames))
        with memory.segment(first):
            parts.append(memory.attend(q[:, tokens], k[:, tokens], v[:, tokens], layout=layout, block=0))
        first += frames
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=0)


def test_a_segment_that_failed_leaves_no_trace():
    memory, x, layout = SlabMemory(ATTENTION, 99), latent(1, 6 * 12, 1, 16), TokenLayout((6, 4, 3))
    with memory.segment(0):
        memory.attend(x, x, x, layout=layout, block=0)
    kept = memory.kept.copy()
    with pytest.raises(RuntimeError), memory.segment(6):
        memory.attend(-x, -x, -x, layout=replace(layout, first_frame=6), block=0)
        raise RuntimeError
    assert memory.kept == kept and not memory.new


@torch.inference_mode()
def test_what_is_kept_does_not_grow_with_the_clip():
    everything = replace(ATTENTION, budget=1e9)  # what is selected depends on the values else

    model = network(everything)

    def run(frames: int) -> None:
        memory = SlabMemory(everything, frames)
        for first in range(0, frames, 6):
            with memory.segment(first):
                z = torch.zeros(1, 32, 6, 4, 6)
                model(z, torch.ones(1), torch.zeros(1, 1, 24), memory.attend, token_order=memory.token_order, first_frame=first)
        kept.append(sum(x.nbytes for past in memory.kept.values() for x in (past.k, past.v)))

    kept = []
    run(24)  # makes tables that all runs share
    peaks = [peak_bytes(lambda frames=frames: run(frames)) for frames in (18, 24, 60)]
    assert peaks[0] == peaks[1] == peaks[2]
    assert kept == [DIT.num_layers * 2 * 6 * 6 * DIT.dim * 4] * 4


@pytest.mark.parametrize("cfg, tiling", [(1.0, (6, None, None)), (1.0, (12, None, None)), (2.0, (6, 32, None))])
@torch.inference_mode()
def test_super_resolution_in_segments_is_that_of_the_whole(tmp_path, tiling, cfg):
    """Segments change nothing, tiles only what tiles change."""
    model, up, z_lr = network(), upsampler(), latent(1, 16, 15, 17, 19)
    sampling, size = replace(ONE_STEP, cfg=cfg, steps=2), (34, 38)
    options = {"sampling": sampling, "context": latent(1, 3, 24), "negative_context": latent(1, 2, 24, seed=5)}
    boxes = ATTENTION.tiling(tiling)
    assert boxes.overlap[0] == 0
    whole = super_resolve(model, up, z_lr, size, **options, tiling=ATTENTION.tiling((None, *tiling[1:])))
    torch.testing.assert_close(super_resolve(model, up, z_lr, size, **options, tiling=boxes), whole, atol=2e-5, rtol=0)
    runtime = torch_runtime(model, up, like=z_lr, tiling=boxes, **options)
    out = super_resolve_to_file(tmp_path, TensorFrames(z_lr), size, runtime, sampling=sampling)
    torch.testing.assert_close(out[:], whole, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_a_clip_starts_again_when_its_tiles_become_smaller():
    """Memory runs out in the second segment, where frames are whole: smaller tiles have no past there."""
    model, z, context = network(), latent(1, 32, 18, 34, 36), latent(1, 2, 24)
    tiling, seen = ATTENTION.tiling((6, None, None)), []

    def velocity(fails: bool, tiling: Tiling) -> TiledVelocity:
        memory = SlabMemory(ATTENTION, 18)

        def run(z_t, condition, sigma):
            seen.append((memory.first_frame, *z_t.shape[3:]))
            if fails and memory.first_frame == 6 and z_t.shape[4] == 36:
                raise torch.OutOfMemoryError
            return model(z_t, sigma[None], context, memory.attend, token_order=memory.token_order, first_frame=memory.first_frame)[:, :1]

        return TiledVelocity(run, tiling, ATTENTION.alignment, memory=memory)

    z = z[:, :1].expand(1, 32, -1, -1, -1)
    run = velocity(True, tiling)
    out = run(z, None, torch.tensor(1000.0))
    assert run.tiling.size == (6, None, 32)
    assert [frame for frame, *_ in seen] == [0, 6, 0, 0, 6, 6, 12, 12]
    torch.testing.assert_close(out, velocity(False, run.tiling)(z, None, torch.tensor(1000.0)))


@pytest.mark.parametrize("failing", range(1, 7))
@torch.inference_mode()
def test_a_clip_ends_whichever_tile_runs_out_of_memory(failing):
    """Three segments of two tiles: a smaller tile never looks back on what another tiling left."""
    model, z, context = network(), latent(1, 1, 18, 4, 48).expand(1, 32, -1, -1, -1), latent(1, 2, 24)
    calls = []

    def velocity(failing: int, tiling: Tiling) -> TiledVelocity:
        memory = SlabMemory(ATTENTION, 18)

        def run(z_t, condition, sigma):
            calls.append(memory.first_frame)
            if len(calls) == failing:
                raise torch.OutOfMemoryError
            return model(z_t, sigma[None], context, memory.attend, token_order=memory.token_order, first_frame=memory.first_frame)[:, :1]

        return TiledVelocity(run, tiling, (6, 4, 4), memory=memory)

    out = (run := velocity(failing, Tiling((6, None, 32), (0, 16, 8))))(z, None, torch.tensor(1000.0))
    assert run.tiling.size == (6, None, 16)
    torch.testing.assert_close(out, velocity(0, run.tiling)(z, None, torch.tensor(1000.0)))


def test_a_segment_without_the_one_before_it_is_an_error():
    memory, x, layout = SlabMemory(ATTENTION, 99), latent(1, 6 * 12, 1, 16), TokenLayout((6, 4, 3))

    def attend(first_frame: int, branch: str) -> None:
        with memory.segment(first_frame):
            memory.attend(x, x, x, layout=replace(layout, first_frame=first_frame), block=0, branch=branch)

    attend(0, "a")
    with pytest.raises(RuntimeError, match="at latent frame 6 needs the segment before it, and has none"):
        attend(6, "b")
    with pytest.raises(RuntimeError, match=r"at latent frame 12 .* has the one that ends before latent frame 6"):
        attend(12, "a")


def test_groups_of_unequal_length_are_not_cut():
    unequal = replace(ATTENTION, groups=(4, 6))
    with pytest.raises(ValueError, match=r"segments of 6 latent frames, but the attention's groups are \(4, 6\) frames"):
        unequal.tiling((6, None, None))
    assert unequal.tiling((None, None, None)).halved((40, 16, 16), unequal.alignment) is None
    assert replace(ATTENTION, groups=(1,)).tiling((1, None, None)).size[0] == 2


@torch.inference_mode()
def test_memory_that_never_suffices_is_an_error():
    def run(z_t, condition, sigma):
        raise torch.OutOfMemoryError

    velocity = TiledVelocity(run, ATTENTION.tiling((None, None, None)), ATTENTION.alignment, memory=SlabMemory(ATTENTION, 18))
    with pytest.raises(OutOfMemory, match=r"smallest box of \(6, "):
        velocity(latent(1, 16, 18, 40, 40), None, torch.tensor(1.0))


@pytest.mark.parametrize("factors", [(2,), (3,), (2, 2), (2, 3)])
@pytest.mark.parametrize("chunks", [[5], [1] * 5, [2, 3]])
@pytest.mark.parametrize("tile", [None, (11, 19), (64, 7)])
@torch.inference_mode()
def test_the_upsampler_streams_and_tiles_exactly(factors, chunks, tile):
    model, z_lr = upsampler(replace(UPSAMPLER, factors=factors), torch.float64), latent(2, 16, 5, 9, 13).double()
    size = tuple(math.prod(factors) * extent for extent in (9, 13))
    whole = model(z_lr, size)
    assert whole.shape == (2, 16, 5, *size)
    streamed = torch.cat(list(model.stream(z_lr.split(chunks, dim=2), size, tile)), dim=2)
    torch.testing.assert_close(streamed, whole, atol=1e-12, rtol=0)


@torch.inference_mode()
def test_upsampling_looks_one_frame_back_for_each_block_and_never_ahead():
    model, z_lr = upsampler(dtype=torch.float64), latent(1, 16, 7, 4, 4).double()
    changed = z_lr.clone()
    changed[:, :, 2] += 1
    before, after = (model(z, (8, 8)) for z in (z_lr, changed))
    assert [frame for frame in range(7) if not torch.equal(before[:, :, frame], after[:, :, frame])] == [2, 3, 4]


@pytest.mark.parametrize("size", [(18, 27), (27, 39), (18, 25), (9, 13)])
def test_another_size_than_the_scales_is_refused_before_any_work(size):
    model = upsampler()
    message = "enlarges 2 times: it makes 208 x 144 pixels of 104 x 72, not .* Ask for scale 2 or 208 x 144 pixels, or load"
    for run in (lambda: model(latent(1, 16, 2, 9, 13), size), lambda: next(model.stream([latent(1, 16, 2, 9, 13)], size))):
        with pytest.raises(ValueError, match=message):
            run()


def test_upsampling_takes_the_same_memory_for_any_length():
    model = upsampler()

    def run(chunks: int) -> None:
        for _ in model.stream((latent(1, 16, 2, 8, 8) for _ in range(chunks)), (16, 16), (8, 16)):
            pass

    peaks = [peak_bytes(lambda chunks=chunks: run(chunks)) for chunks in (3, 30)]
    assert peaks[0] == peaks[1]
