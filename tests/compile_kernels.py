"""Compiles the Triton kernels for a GPU that need not be here: `compile_kernels.py 90` for compute capability 9.0.

Prints registers and spilled bytes per thread of each kernel, with the tiles that it would run with, for windows of 108 and
of 64 tokens and blocks of 128. Exits with 1 when attention spills, or a kernel whose registers are limited.
"""

import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from simplegvr_core.networks.kernels import block_triton
from simplegvr_core.networks.kernels import sparse_local_triton as ours

CUOBJDUMP = next((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("cuobjdump*"))
TYPES = dict.fromkeys(("q", "k", "v", "x", "out", "grad", "q_grad", "k_grad", "v_grad"), "*bf16")
TYPES |= dict.fromkeys(("log_sum", "delta", "mean"), "*fp32") | {"scale": "fp32"}
TYPES |= dict.fromkeys(("table", "length", "selection", "selectors", "first_selector"), "*i64")
TYPES |= dict.fromkeys(("q_table", "q_length", "k_table", "k_length", "order", "block", "start", "count", "nulls"), "*i64")


def registers_and_spills(kernel, capability: int, settings: dict) -> tuple[int, int]:
    constants = {name: value for name, value in settings.items() if name in kernel.arg_names}
    options = {name: value for name, value in settings.items() if name in ("num_warps", "num_stages", "maxnreg")}
    names = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(names) if names[name].startswith("*") or re.search("_(batch|token|head)$", name)]
    source = ASTSource(
        fn=kernel,
        signature=names,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()))


if __name__ == "__main__":
    capability, failed = int(sys.argv[1]), False
    limited_kernels = (ours.attention_kernel, ours.q_grad_kernel)
    windows = product((ours.mean_kernel, *limited_kernels, ours.kv_grad_kernel), (108, 64), ours.HEAD_DIMS, (True, False))
    blocks = product((ours.mean_kernel, block_triton.block_kernel), (128,), ours.HEAD_DIMS, (True, False))
    for kernel, size, head_dim, contiguous in (*windows, *blocks):
        limit = ours.occupancy(size, contiguous, divmod(capability, 10)) if kernel in limited_kernels else {}
        settings = {"M": ours.tile_size(size)} | ours.constants(size, head_dim, contiguous) | limit
        registers, spilled = registers_and_spills(kernel, capability, settings)
        failed |= spilled > 0 and (kernel in (ours.attention_kernel, block_triton.block_kernel) or bool(limit))
        case = f"{kernel.fn.__name__:18} P {size:3} D {head_dim:3} contiguous {contiguous!s:5}"
        print(f"{case} {registers} of {limit.get('maxnreg', 255)} registers, {spilled} bytes spilled")
    sys.exit(failed)
