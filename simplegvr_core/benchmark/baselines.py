"""Attention by other people's code, timed in the same run and on the same tensors as ours.

DENSE and SPARSE map a name to a factory. A factory does what a user of that code would do once, and returns a callable
without arguments that runs attention once. The factory runs it once, so that compilation is done. Where the code cannot
run, the factory raises Unavailable with the reason. A package is imported when its factory is called.

B batch, L tokens, n heads, d head dim, W windows, K windows that a window attends to. q, k, v: (B, L, n, d).
windows: .table (W, P) token indices of each window, -1 after the last; .length (W,) tokens of each window. Every token is in
one window. selection: (B, n, W, K) windows that each window attends to in one softmax, -1 for none.
"""

import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..networks.windows import Windows

BLOCK = 128  # tokens of a block of keys or queries in the block-sparse kernels
TEXT_TOKENS = 58  # of the fixed prompt that SeedVR2 is distilled for


P = ParamSpec("P")
Run = Callable[[], Tensor]  # runs attention once
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v of padded windows -> attention


class Unavailable(Exception):
    """A baseline cannot run on this machine; the message gives the reason."""


def checked(factory: Callable[P, Run]) -> Callable[P, Run]:
    """Returns the factory with a first run of the attention that it makes; any failure of that run becomes Unavailable."""

    @wraps(factory)
    def make(*arguments: P.args, **options: P.kwargs) -> Run:
        run = factory(*arguments, **options)
        try:
            run()
        except Exception as error:
            raise Unavailable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        return run

    return make


@checked
def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Run:
    """Returns dense attention by exactly this backend of PyTorch's scaled_dot_product_attention."""
    if not q.is_cuda and (q.device.type, backend) != ("cpu", SDPBackend.FLASH_ATTENTION):
        raise Unavailable("needs a CUDA device")
    attend = sdpa_kernel(backend)(F.scaled_dot_product_attention)
    q, k, v = (rearrange(x, "B L n d -> B n L d") for x in (q, k, v))
    return lambda: attend(q, k, v).transpose(1, 2)


@checked
def comfyui(q: Tensor, k: Tensor, v: Tensor) -> Run:
    """Returns dense attention by the function that ComfyUI picks on this device; its .label is that function's name."""
    attend = comfyui_attribute("comfy.ldm.modules.attention", "optimized_attention")
    heads = q.shape[2]
    q, k, v = (rearrange(x, "B L n d -> B L (n d)") for x in (q, k, v))

    def run() -> Tensor:
        return attend(q, k, v, heads=heads).unflatten(-1, (heads, -1))

    run.label = attend.__name__
    return run


@checked
def flash_attn(package: str, module: str, oldest_sm: int, q: Tensor, k: Tensor, v: Tensor) -> Run:
    """Returns dense attention by flash_attn_func of FlashAttention-3 or -4, which take the layout (B, L, n, d)."""
    require_nvidia(q, oldest_sm)
    attend = attribute(package, module, "flash_attn_func")

    def run() -> Tensor:
        out = attend(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # version 4 and early builds of 3 add the log-sum-exp

    return run


@checked
def padded(
    kernel: Callable[[Tensor, Windows, Tensor], Kernel], ahead: bool, q: Tensor, k: Tensor, v: Tensor, windows: Windows, selection: Tensor
) -> Run:
    """Returns sparse attention by a block-sparse kernel whose blocks have one window each.

    Args:
        kernel: (q, windows, selection) -> attention of padded tensors.
        ahead: Whether windows are copied into their blocks once, as in a model whose tokens are padded throughout, instead of
            on each call. The result is then (B, W * 128, n, d), rows as in padding().
        q: (B, L, n, d).
        k: (B, L, n, d).
        v: (B, L, n, d).
        windows: Windows of at most 128 tokens.
        selection: (B, n, W, K) windows that each window attends to, -1 for none.

    Raises:
        Unavailable: A window has more than 128 tokens.
    """
    token_of_row, row_of_token = padding(windows)
    attend = kernel(q, windows, selection)
    if ahead:
        q, k, v = (x.index_select(1, token_of_row) for x in (q, k, v))
        return lambda: attend(q, k, v)
    return lambda: attend(*(x.index_select(1, token_of_row) for x in (q, k, v))).index_select(1, row_of_token)


def padding(windows: Windows) -> tuple[Tensor, Tensor]:
    """Returns the token in each row of the padded windows, (W * 128,), and the row of each token, (L,).

    Rows that pad a window have token 0. Raises Unavailable when a window has more than 128 tokens.
    """
    if windows.table.shape[1] > BLOCK:
        raise Unavailable(f"windows have up to {windows.table.shape[1]} tokens, its blocks {BLOCK}")
    tokens = F.pad(windows.table, (0, BLOCK - windows.table.shape[1]), value=-1).flatten()
    live = tokens >= 0
    return tokens.clamp(min=0), live.nonzero().flatten()[tokens[live].argsort()]


def block_lists(selection: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (B, n, W, K) blocks to attend to, those that exist first, and (B, n, W) how many do; both int32."""
    blocks = selection.sort(dim=-1, descending=True).values.clamp(min=0)
    return blocks.int(), (selection >= 0).sum(-1, dtype=torch.int32)


def flex(q: Tensor, windows: Windows, selection: Tensor) -> Kernel:
    """Returns PyTorch's FlexAttention on padded windows, compiled for one shape."""
    blocks, counts = block_lists(selection)
    num_windows, length = selection.shape[2], windows.length
    mask = BlockMask.from_kv_blocks(
        counts,
        F.pad(blocks, (0, num_windows - blocks.shape[-1])),  # the CPU's kernel takes no narrower lists
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, query, key: key % BLOCK < length[key // BLOCK],
        compute_q_blocks=False,
    )

    @partial(torch.compile, fullgraph=True, dynamic=False)
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # uncompiled, it ignores the lists and attends to everything
            raise RuntimeError("torch.compile is switched off")
        out = flex_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask)
        assert isinstance(out, Tensor)  # without auxiliary outputs
        return out.transpose(1, 2)

    return attend


def cudnn_block_sparse(q: Tensor, windows: Windows, selection: Tensor) -> Kernel:
    """Returns the block-sparse attention of NVIDIA's cuDNN frontend on padded windows."""
    require_nvidia(q, 90)
    forward = attribute("nvidia-cudnn-frontend", "cudnn", "block_sparse_attention_forward")
    blocks, counts = block_lists(selection)
    blackwell = torch.cuda.get_device_capability(q.device)[0] in (10, 11)
    same_count = selection.min() >= 0 and not (blackwell and selection.shape[-1] % 2)  # there a fixed count must be even
    settings = {
        "q2k_block_index": blocks,
        "q2k_block_nums": None if same_count else counts,
        "block_sizes": windows.length.int(),
        "sparse_block_size": BLOCK,
        "layout": "bshd",
    }
    return lambda q, k, v: forward(q, k, v, **settings)["o_tensor"]


@checked
def seedvr2_block(grid: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> Run:
    """Returns one whole transformer block of ComfyUI's SeedVR2 3B with random weights, whose result is (L, 2560).

    Text and video share weights, as in the last 22 of its 32 blocks; windows are not shifted, as in every other block.
    Window indices and rotary angles are cached after the first call, as in ComfyUI from block to block.

    Args:
        grid: Video tokens along time, height and width.
        device: Where it runs.
        dtype: Type of its weights and inputs.
    """
    model = comfyui_attribute("comfy.ldm.seedvr.model")
    operations = comfyui_attribute("comfy.ops", "disable_weight_init")
    factory, dim = {"device": device, "dtype": dtype}, 2560  # NaDiT's default, as are the 3B's other sizes
    network = model.NaDiT(norm_eps=1e-5, num_layers=2, mm_layers=0, mlp_type="swiglu", operations=operations, **factory)
    block = network.blocks[0].to(device)
    for parameter in block.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    video, video_shape = model.flatten([torch.randn(*grid, dim, **factory)])
    text, text_shape = model.flatten([torch.randn(TEXT_TOKENS, dim, **factory)])
    embedding, cache = torch.randn(1, 6 * dim, **factory), model.Cache()
    return lambda: block(video, text, video_shape, text_shape, embedding, cache)[0]


def comfyui_attribute(module: str, name: str | None = None) -> Any:
    """Returns a module of ComfyUI, or its attribute. Raises Unavailable when COMFYUI_PATH is no folder of ComfyUI."""
    folder = os.environ.get("COMFYUI_PATH", "")
    if not (Path(folder) / "comfy").is_dir():
        raise Unavailable(f"COMFYUI_PATH is {folder!r}, not a folder of ComfyUI")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not torch.accelerator.is_available():
        attribute("ComfyUI", "comfy.cli_args", "args").cpu = True  # before its modules look for a device
    return attribute("ComfyUI", module, name)


def attribute(package: str, module: str, name: str | None = None) -> Any:
    """Returns a module of an optional package, or its attribute. Raises Unavailable when there is none."""
    try:
        loaded = import_module(module)
        return loaded if name is None else getattr(loaded, name)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"{package} is not installed or another version: {error}") from error


def require_nvidia(q: Tensor, oldest_sm: int) -> None:
    """Raises Unavailable unless q is float16 or bfloat16 on an NVIDIA GPU of architecture oldest_sm or newer."""
    if not q.is_cuda or torch.version.hip:
        raise Unavailable("needs an NVIDIA GPU")
    major, minor = torch.cuda.get_device_capability(q.device)
    if 10 * major + minor < oldest_sm:
        raise Unavailable(f"SM{major}{minor}: needs SM{oldest_sm} or newer")
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise Unavailable(f"{q.dtype}: needs float16 or bfloat16")


DENSE = {
    "sdpa flash": partial(sdpa, SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": partial(sdpa, SDPBackend.CUDNN_ATTENTION),
    "sdpa efficient": partial(sdpa, SDPBackend.EFFICIENT_ATTENTION),
    "comfyui": comfyui,
    "flash-attn 3": partial(flash_attn, "FlashAttention-3", "flash_attn_interface", 90),
    "flash-attn 4": partial(flash_attn, "flash-attn-4", "flash_attn.cute", 80),
}
SPARSE = {
    "flex": partial(padded, flex, False),
    "flex, padded ahead": partial(padded, flex, True),
    "cudnn block sparse": partial(padded, cudnn_block_sparse, False),
    "cudnn block sparse, padded ahead": partial(padded, cudnn_block_sparse, True),
}
