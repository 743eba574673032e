"""The Triton kernels: on a GPU as they are, elsewhere in Triton's interpreter; and compiled for GPUs that are not there."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import REPO
from test_kernels import EVEN, assert_as_exact_as_reference

from simplegvr_core.networks import kernels
from simplegvr_core.networks.attention import AttentionConfig, attend
from simplegvr_core.networks.kernels import KernelCase, sdpa
from simplegvr_core.networks.windows import TokenLayout, cut_windows

pytest.importorskip("triton", reason="there is no Triton for this system")
pytestmark = pytest.mark.usefixtures("one_thread")
triton = kernels.load("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_strides_are_each_tensors_own():
    """q cut from a fused projection, k contiguous, v with features apart, a selection and a gradient of stride 0."""
    windows = cut_windows((3, 5, 7), (1, 4, 3), (3,)).copy_to(DEVICE)
    selection = torch.arange(windows.num_windows, device=DEVICE)[:, None].expand(1, 2, -1, -1)
    q, k = torch.randn(1, 105, 3, 2, 64, device=DEVICE).unbind(2)[0], torch.randn(1, 105, 2, 64, device=DEVICE)
    v = torch.randn(1, 105, 64, 2, device=DEVICE).transpose(2, 3)
    tensors = [x.requires_grad_() for x in (q, k, v)]
    outs = [kernel.window_attention(*tensors, windows, selection) for kernel in (triton, sdpa)]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), tensors) for out in outs), atol=1e-5, rtol=1e-5)


def test_attend_takes_the_kernel_it_is_told(monkeypatch):
    calls = []
    monkeypatch.setattr(triton, "attention_op", lambda *a: calls.append(1) or (torch.zeros_like(a[0]), None))
    q = torch.randn(1, 105, 2, 64, device=DEVICE)
    assert not attend(q, q, q, TokenLayout((3, 5, 7)), AttentionConfig(window=(1, 4, 3)), 0, kernel=triton).any() and calls


def test_compiled_graphs_keep_the_operator_whole():
    windows = cut_windows((3, 5, 7), (1, 4, 3), (3,)).copy_to(DEVICE)
    selection = torch.arange(windows.num_windows, device=DEVICE)[:, None].expand(1, 2, -1, -1)
    q = torch.randn(1, 105, 2, 64, device=DEVICE, requires_grad=True)
    compiled = torch.compile(lambda x: triton.window_attention(x, x, x, windows, selection) * 2, backend="aot_eager", fullgraph=True)
    expected = triton.window_attention(q, q, q, windows, selection) * 2
    torch.testing.assert_close(compiled(q), expected)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), q)[0] for out in (compiled(q), expected)))


@pytest.mark.parametrize("size, contiguous", [(5, True), (12, False), (67, True)])
def test_the_first_call_check_finds_wrong_kernels(monkeypatch, size, contiguous):
    case = KernelCase(DEVICE, torch.float16, 64, size, contiguous)
    training = replace(case, training=True)
    triton.check(training)
    right, right_mean, right_gradient = triton.window_attention, triton.window_mean, triton.gradient_op
    for wrong in (lambda *a: right(*a) + 0.1, lambda *a: right(*a[:4], a[4].clamp(min=0))):  # values; windows that are not there
        monkeypatch.setattr(triton, "window_attention", wrong)
        with pytest.raises(AssertionError):
            triton.check(case)
    monkeypatch.setattr(triton, "window_attention", right)
    monkeypatch.setattr(triton, "window_mean", lambda *a: 1.01 * right_mean(*a))
    with pytest.raises(AssertionError):
        triton.check(case)
    monkeypatch.setattr(triton, "window_mean", right_mean)
    monkeypatch.setattr(triton, "gradient_op", lambda *a: tuple(2 * x for x in right_gradient(*a)))
    triton.check(case)
    with pytest.raises(AssertionError):
        triton.check(training)


@pytest.mark.parametrize("size, contiguous", [(5, True), (12, False), (1000, True)])
def test_the_check_tries_the_windows_that_it_is_asked_about(monkeypatch, size, contiguous):
    tried = []
    monkeypatch.setattr(triton, "window_mean", lambda x, windows: tried.append(windows) or sdpa.window_mean(x, windows))
    monkeypatch.setattr(triton, "window_attention", sdpa.window_attention)
    triton.check(KernelCase(DEVICE, torch.float16, 64, size, contiguous))
    (windows,) = tried
    assert windows.contiguous == contiguous and windows.ragged
    assert windows.table.shape[1] == min(size, 3 * 128)


def test_windows_that_span_more_than_32_bits_are_counted_by_their_table(monkeypatch):
    near, wide = (torch.empty_strided((1, 17, 1, 64), (0, stride, 64, 1), device="meta") for stride in (2**31 // 9, 2**31 // 9 + 1))
    assert triton.fits_32_bits(9, near, near) and not triton.fits_32_bits(9, near, wide)
    monkeypatch.setattr(triton, "fits_32_bits", lambda *a: False)
    assert_as_exact_as_reference("triton", EVEN["k 1, contiguous"], torch.float16)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter copies all 4 GiB on each call")
def test_elements_beyond_32_bits_are_found():
    """Heads 2^30 elements apart, then tokens 2^27."""
    windows = cut_windows((1, 1, 34), (1, 1, 17), (1,)).copy_to(DEVICE)
    selection = torch.tensor([[0, 1], [1, 0]], device=DEVICE).expand(1, 3, 2, 2)
    memory = torch.empty(34 * 2**27, dtype=torch.float16, device=DEVICE)
    for shape, strides in (((1, 34, 3, 64), (0, 64, 2**30, 1)), ((1, 34, 1, 64), (0, 2**27, 64, 1))):
        wide = memory.as_strided(shape, strides).copy_(torch.randn(shape, device=DEVICE))
        near, chosen = wide.contiguous(), selection[:, : shape[2]]
        torch.testing.assert_close(triton.window_mean(wide, windows), triton.window_mean(near, windows))
        torch.testing.assert_close(*(triton.window_attention(x, x, x, windows, chosen) for x in (wide, near)))


def test_what_the_kernels_do_not_do_is_said(monkeypatch):
    monkeypatch.setattr(triton, "capability", lambda device: (7, 5))
    with pytest.raises(RuntimeError, match="needs compute capability"):
        triton.check(KernelCase(DEVICE, torch.float16, 64, 108, contiguous=True))
    monkeypatch.setattr(triton, "capability", lambda device: (9, 0))
    with pytest.raises(RuntimeError, match="float16 or bfloat16 and head dims"):
        triton.check(KernelCase(DEVICE, torch.float32, 64, 108, contiguous=True))


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), pytest.param(90, marks=pytest.mark.slow), 120])
def test_kernels_compile_for_gpus_that_are_not_here(capability):
    command = [sys.executable, REPO / "tests" / "compile_kernels.py", str(capability)]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "TRITON_INTERPRET": "0"}
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
