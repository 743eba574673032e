"""Every kernel of window attention against the plain reference: as exact, with its gradients, in windows of every form."""

from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch

from simplegvr_core.networks import kernels
from simplegvr_core.networks.attention import AttentionConfig, select_windows
from simplegvr_core.networks.kernels import reference
from simplegvr_core.networks.windows import TokenLayout

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [name for name in kernels.KERNELS if name != "reference" and (name != "triton" or find_spec("triton"))]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()  # the Triton interpreter's bfloat16 is wrong


@dataclass(frozen=True)
class Case:
    config: AttentionConfig
    layout: TokenLayout
    block: int = 0
    batch: int = 1
    heads: int = 2
    head_dim: int = 64


EVEN = {
    f"k {top_k}, {name}": Case(AttentionConfig(window=window, top_k=top_k), layout)
    for top_k in (0, 1, 3)
    for name, window, layout in (
        ("contiguous", (1, 4, 3), TokenLayout((3, 5, 7), ordered=True)),
        ("raster order", (1, 5, 4), TokenLayout((5, 9, 13))),
    )
}
GRID = (3, 5, 7)
OTHERS = {
    "3d window": Case(
        AttentionConfig(window=(2, 4, 3), top_k=3), TokenLayout(GRID, ordered=True), block=1
    ),  # not contiguous though ordered
    "short units": Case(AttentionConfig(window=(1, 5, 7), top_k=7, unit=2), TokenLayout(GRID), block=1),  # fewer windows than top_k
    "large window": Case(AttentionConfig(window=(3, 9, 9)), TokenLayout((3, 11, 13))),  # more than one tile of queries
    "condition tokens": Case(AttentionConfig(window=(1, 4, 3)), TokenLayout(GRID, num_condition_tokens=17)),
    "batch": Case(AttentionConfig(window=(1, 4, 3)), TokenLayout(GRID), batch=2, heads=3, head_dim=128),
}


def results(window_attention, tensors, grad, windows, selection, dtype):
    """Returns attention and the gradients of q, k, v."""
    q, k, v = (x.to(dtype).requires_grad_() for x in tensors)
    out = window_attention(q, k, v, windows, selection)
    return out, *torch.autograd.grad(out, (q, k, v), grad.to(dtype))


def assert_as_exact_as_reference(name: str, case: Case, dtype: torch.dtype) -> None:
    generator, length = torch.Generator().manual_seed(0), case.layout.num_grid_tokens
    shape = case.batch, length + case.layout.num_condition_tokens, case.heads, case.head_dim
    q, k, v = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(3))
    tensors = q[:, :length], k, v
    grad = torch.randn(tensors[0].shape, generator=generator).to(DEVICE, dtype)
    windows = case.config.windows(case.layout, case.block, DEVICE)
    selection = select_windows(*tensors[:2], windows, case.config, reference)
    exact = results(reference.window_attention, tensors, grad, windows, selection, torch.float64)
    plain = results(reference.window_attention, tensors, grad, windows, selection, dtype)
    ours = results(kernels.load(name).window_attention, tensors, grad, windows, selection, dtype)
    for what, a, b, c in zip(("out", "q", "k", "v"), exact, plain, ours, strict=True):
        assert c.dtype == dtype
        assert (c - a).norm() <= 2 * (b - a).norm(), what


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", EVEN.values(), ids=EVEN)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_the_references(name, case, dtype):
    assert_as_exact_as_reference(name, case, dtype)


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_windows_of_other_forms_are_as_exact(name, case):
    assert_as_exact_as_reference(name, case, torch.float16)


@pytest.mark.parametrize("grid, window", [((3, 5, 7), (1, 4, 3)), ((5, 9, 13), (2, 5, 4)), ((1, 24, 18), (1, 12, 9))])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_means_select_the_windows_that_the_references_do(name, ordered, grid, window):
    config, layout = AttentionConfig(window=window, top_k=3), TokenLayout(grid, ordered)
    windows = config.windows(layout, 0, DEVICE)
    shape = 2, layout.num_grid_tokens, 3, 64
    q, k = torch.randn(2, *shape, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    expected = select_windows(q, k, windows, config, reference)
    assert torch.equal(select_windows(q, k, windows, config, kernels.load(name)), expected)
