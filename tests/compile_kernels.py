"""Compiles the Triton kernels for a GPU that need not be here: `compile_kernels.py 90` for compute capability 9.0.

Prints registers and spilled bytes per thread of each kernel. Exits with 1 when attention spills, or when on Hopper it
takes more than the 128 registers with which two programs share a multiprocessor.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from simplegvr_core.kernels import sparse_local_triton as ours

CUOBJDUMP = next((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("cuobjdump*"))
TYPES = dict.fromkeys(("q", "k", "v", "x", "out", "grad", "q_grad", "k_grad", "v_grad"), "*bf16")
TYPES |= dict.fromkeys(("log_sum", "delta", "mean"), "*fp32") | {"scale": "fp32"}
TYPES |= dict.fromkeys(("table", "length", "selection", "selectors", "first_selector"), "*i64")


def registers_and_spills(kernel, capability: int, head_dim: int, contiguous: bool, options: dict) -> tuple[int, int]:
    constants = {"P": 108, "D": head_dim, "M": 128, "N": 32, "CONTIGUOUS": contiguous}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    names = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(names) if names[name].startswith("*") or re.search("_(batch|token|head)$", name)]
    source = ASTSource(
        fn=kernel,
        signature=names,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8, "num_stages": 2} | options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()))


if __name__ == "__main__":
    capability, failed = int(sys.argv[1]), False
    for kernel in (ours.mean_kernel, ours.attention_kernel, ours.q_grad_kernel, ours.kv_grad_kernel):
        for head_dim in ours.HEAD_DIMS:
            for contiguous in (True, False):
                shared = capability == 90 and contiguous and kernel in (ours.attention_kernel, ours.q_grad_kernel)
                options = {"maxnreg": ours.HOPPER_REGISTERS} if shared else {}
                registers, spilled = registers_and_spills(kernel, capability, head_dim, contiguous, options)
                failed |= (kernel is ours.attention_kernel and spilled > 0) or (shared and registers > 128)
                print(f"{kernel.fn.__name__:18} D {head_dim:3} contiguous {contiguous!s:5} {registers} registers, {spilled} bytes spilled")
    sys.exit(failed)
