"""Compares our networks with numbers of Ultra Flash's own code: `run.py tools/ultra_flash_parity.py --manifest FILE --case NAME`.

The manifest names weights and tensors beside it and holds each case's settings. The last line is JSON: "max_abs", the largest
error of any output, and "masks_equal", whether every block mask is the same (true where a case has none).
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from comfyui import become
from safetensors.torch import load_file
from torch import Tensor

from simplegvr_core.flow import interpolate
from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.block_causal import choose_blocks
from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.block_selection import BlockSelection
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.foreign import read_any
from simplegvr_core.networks.kernels import block_reference, load_block
from simplegvr_core.networks.ultra_upsampler import UltraUpsampler
from simplegvr_core.networks.upsampler import load_upsampler
from simplegvr_core.networks.windows import TokenLayout

FALLBACK_PAIRS = 4  # what the reference keeps where its settings leave none
FIXED = {"patch_size": [1, 2, 2], "out_dim": 16, "qk_norm": True, "cross_attn_norm": True, "rope_theta": 10000.0, "use_sparse_attn": True}
FIXED |= {"sparse_causal": True, "sparse_local_num": None}
SIZES = ("in_dim", "dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "freq_dim", "eps")
FIXED_UPSAMPLER = {"in_channels": 16, "out_channels": 16, "activation": "relu", "residual": False, "memory_init": "replicate"}


@dataclass(frozen=True)
class Parity:
    """Runs one case of a manifest."""

    manifest: Path
    """JSON; files that it names lie beside it."""
    case: str
    implementation: Literal["reference", "sdpa", "triton"] = "sdpa"
    """Of block-causal attention. reference: the plain one, a mask over the whole clip. triton runs in its interpreter without a GPU."""

    def run(self) -> dict:
        """Returns {"max_abs", "masks_equal"}. Raises ValueError for settings that our networks do not have."""
        cases = json.loads(self.manifest.read_text(encoding="utf-8"))["cases"]
        if self.case not in cases:
            raise ValueError(f"--case is {self.case!r}, wanted one of {', '.join(cases)}")
        case = cases[self.case]
        tensors = load_file(self.manifest.parent / case["tensors"])
        with torch.inference_mode():
            return {"dit": self.dit, "upsampler": self.upsampler, "cascade": self.cascade}[case["kind"]](case, tensors)

    def dit(self, case: dict, tensors: dict[str, Tensor]) -> dict:
        """Compares velocity, clean latent and masks of a clip that the reference ran in groups."""
        model = self.model(case["weights"], case["params"])
        attention = attention_config(case, case["params"], tensors["noise"].shape)
        clip = {name: batched(tensors[name]) for name in ("noise", "condition")}
        masks: dict[int, Tensor] = {}
        velocity = self.velocity(model, attention, clip, tensors["context"], case["params"], case["timestep"], masks)
        errors = [max_abs(velocity, tensors["velocity"]), max_abs(clip["noise"] - velocity, tensors["clean"])]
        return {"max_abs": max(errors), "masks_equal": masks_equal(masks, tensors, attention, tensors["noise"].shape)}

    def upsampler(self, case: dict, tensors: dict[str, Tensor]) -> dict:
        """Compares the upsampled latent, whole and streamed."""
        model = self.load_upsampler(case["weights"], case["params"])
        size = tuple(tensors["z"].shape[-2:])
        z_lr = batched(tensors["z_lr"])
        whole, streamed = model(z_lr, size), torch.cat(list(model.stream(z_lr.split(2, dim=2), size)), dim=2)
        return {"max_abs": max(max_abs(z, tensors["z"]) for z in (whole, streamed)), "masks_equal": True}

    def cascade(self, case: dict, tensors: dict[str, Tensor]) -> dict:
        """Compares upsampled and clean latent of upsampler and transformer after each other."""
        dit_weights, upsampler_weights = case["weights"]
        params = case["params"]["dit"]
        upsampled = self.load_upsampler(upsampler_weights, case["params"]["upsampler"])(
            batched(tensors["z_lr"]), tuple(tensors["upsampled"].shape[-2:])
        )
        condition = upsampled
        if case["condition_noise_scale"]:
            condition = interpolate(upsampled, batched(tensors["condition_noise"]), case["condition_noise_scale"])
        clip = {"noise": batched(tensors["noise"]), "condition": condition}
        attention, masks = attention_config(case, params, tensors["noise"].shape), {}
        model, timestep = self.model(dit_weights, params), case.get("timestep", 1000.0)
        velocity = self.velocity(model, attention, clip, tensors["context"], params, timestep, masks)
        errors = [max_abs(upsampled, tensors["upsampled"]), max_abs(clip["noise"] - velocity, tensors["clean"])]
        return {"max_abs": max(errors), "masks_equal": masks_equal(masks, tensors, attention, tensors["noise"].shape)}

    def model(self, weights: str, params: dict) -> SimpleGVRDiT:
        """Returns the transformer, read as a user's file is, at the settings of params. Raises ValueError for others than ours."""
        refuse_other_settings(params, FIXED)
        path = self.manifest.parent / weights
        tensors, config = read_any(path, "dit")
        sizes = checkpoint.parse_config(DiTConfig, config, "model", path)
        sizes = replace(sizes, **{name: params[name] for name in SIZES})
        model = SimpleGVRDiT(sizes, BlockCausalConfig())
        checkpoint.load_strict(model, tensors, path)
        return model.eval()

    def load_upsampler(self, weights: str, params: dict) -> UltraUpsampler:
        refuse_other_settings(params, FIXED_UPSAMPLER)
        model = load_upsampler(self.manifest.parent / weights)
        assert isinstance(model, UltraUpsampler)
        return model

    def velocity(
        self,
        model: SimpleGVRDiT,
        attention: BlockCausalConfig,
        clip: dict[str, Tensor],
        context: Tensor,
        params: dict,
        timestep: float,
        masks: dict[int, Tensor],
    ) -> Tensor:
        """Returns the velocity of the whole clip at once; masks receives each layer's (n, W, W)."""
        z = torch.cat((clip["noise"], clip["condition"]), dim=1)
        text = F.pad(context, (0, 0, 0, params["text_len"] - len(context))).expand(len(z), -1, -1)
        run = reference_attention if self.implementation == "reference" else partial(kernel_attention, name=self.implementation)

        def self_attention(q: Tensor, k: Tensor, v: Tensor, *, layout: TokenLayout, block: int) -> Tensor:
            out, masks[block] = run(q, k, v, layout, attention)
            return out

        return model(z, torch.full((len(z),), timestep), text, self_attention)


def attention_config(case: dict, params: dict, shape: torch.Size) -> BlockCausalConfig:
    """Returns the attention of a case. shape: (..., H, W) of its latent in cells."""
    window = tuple(params["sparse_block_size"])
    config = BlockCausalConfig(
        window=window,
        top_k=params["sparse_top_k"] or 0,
        groups=tuple(case["groups"]),
        memory=case["kv_len"],
        chunk=max(1, params["stream_chunk_size"] // window[0]),
        local_range=params["sparse_local_range"],
    )
    ratio, tokens = params["sparse_top_k_ratio"], params["sparse_ref_spatial_tokens"]
    if ratio <= 0:
        return replace(config, top_k=config.top_k or FALLBACK_PAIRS)
    if not tokens:  # a share of a slab's pairs at any size
        tokens = shape[-2] // 2 * (shape[-1] // 2)
    return replace(config, budget=float(ratio * tokens))


def reference_attention(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: BlockCausalConfig) -> tuple[Tensor, Tensor]:
    """Returns attention and the mask (n, W, W), both by the plain implementation."""
    blocks = (block_reference.cut_blocks(x, layout.grid, config) for x in (q, k))
    return block_reference.attention(q, k, v, layout.grid, config), block_reference.block_mask(*blocks, layout.grid, config)[0]


def kernel_attention(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: BlockCausalConfig, name: str) -> tuple[Tensor, Tensor]:
    """Returns the same by a kernel of BLOCK_KERNELS."""
    kernel, blocks, selection = choose_blocks(q, k, layout, config, load_block(name))
    return kernel.block_attention(q, k, v, blocks, selection), selection_mask(selection, blocks.keys.num_windows)


def selection_mask(selection: BlockSelection, blocks: int) -> Tensor:
    """Returns (n, W, W) whether a query block has selected a key block, of the first batch entry."""
    rows = torch.arange(selection.count.numel()).repeat_interleave(selection.count.flatten())
    within = torch.arange(len(rows)) - (selection.count.flatten().cumsum(0) - selection.count.flatten())[rows]
    mask = torch.zeros(selection.count.numel(), blocks, dtype=torch.bool)
    mask[rows, selection.block[selection.start.flatten()[rows] + within]] = True
    return mask.view(*selection.count.shape, blocks)[0]


def masks_equal(masks: dict[int, Tensor], tensors: dict[str, Tensor], config: BlockCausalConfig, shape: torch.Size) -> bool:
    """Returns whether masks, {layer: (n, W, W)}, are the stored mask.GROUP.LAYER: queries of a group, keys of its cache and its own."""
    if not any(name.startswith("mask.") for name in tensors):
        return True
    N = -(-shape[-2] // 2 // config.window[1]) * -(-shape[-1] // 2 // config.window[2])
    start, equal = 0, True
    for group, frames in enumerate(config.groups):
        stop = start + -(-frames // config.window[0])
        origin = 0 if config.memory is None else max(0, start - config.memory)
        for layer, mask in masks.items():
            rows = mask[:, start * N : stop * N]
            equal &= torch.equal(rows[:, :, origin * N : stop * N], tensors[f"mask.{group}.{layer}"].bool())
            equal &= not rows[:, :, : origin * N].any() and not rows[:, :, stop * N :].any()
        start = stop
    return equal


def refuse_other_settings(params: dict, fixed: dict) -> None:
    """Raises ValueError that names a setting whose value our network cannot have."""
    for name, value in fixed.items():
        if params.get(name, value) != value:
            raise ValueError(f"the case sets {name} to {params[name]!r}, but our network has {value!r} only")


def batched(x: Tensor) -> Tensor:
    """Returns x (C, T, H, W) or (B, C, T, H, W) with its batch axis."""
    return x if x.ndim == 5 else x[None]


def max_abs(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - batched(theirs)).abs().max())


if __name__ == "__main__":
    options = tyro.cli(Parity)
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # the numbers' own; with others convolutions round differently, by 2e-6
    if options.implementation == "triton" and not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    if missing := environment.items() - os.environ.items():  # read when PyTorch and Triton begin
        os.environ |= dict(missing)
        become([sys.executable, *sys.argv])
    print(json.dumps(options.run()))
