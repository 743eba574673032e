"""Other people's attention: right where it runs, and a reason where it does not."""

import os
import subprocess
import sys
from types import SimpleNamespace

import comfyui as setup
import pytest
import torch
import torch.nn.functional as F
from conftest import REPO

from simplegvr_core.benchmark import baselines
from simplegvr_core.benchmark.baselines import Unavailable, attribute, block_lists, checked, padded, padding

Q, K, V = torch.randn(2, 50, 3, 2, 16, generator=torch.Generator().manual_seed(0)).unbind(2)
CELLS = [cell.sort().values for cell in torch.randperm(50, generator=torch.Generator().manual_seed(1)).split((21, 8, 21))]
WINDOWS = SimpleNamespace(
    table=torch.nn.utils.rnn.pad_sequence(CELLS, batch_first=True, padding_value=-1),
    length=torch.tensor([len(cell) for cell in CELLS]),
)
SELECTION = torch.tensor([[0, 1, 2], [1, -1, 2], [2, -1, -1]]).expand(2, 2, 3, 3)
ELSEWHERE = """
import sys, torch, torch.nn.functional as F
from simplegvr_core.benchmark import baselines
assert "comfy" not in sys.modules
q, k, v = torch.randn(2, 50, 3, 2, 16).unbind(2)
attend = baselines.DENSE["comfyui"](q, k, v)
torch.testing.assert_close(attend(), F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2))
assert sys.argv[1:] == ["dense", "--steps", "3"]
print(attend.label)
"""


def dense(q, k, v, mask=None):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


def identity(q, windows, selection):
    return lambda q, k, v: v


def masked_dense(q, windows, selection):
    """Returns block-sparse attention by a mask over all padded rows."""
    blocks, counts = block_lists(selection)
    rows = torch.arange(128 * len(windows.table))
    live = rows % 128 < windows.length[rows // 128]
    listed = torch.arange(blocks.shape[-1]) < counts[..., None]
    seen = (F.one_hot(blocks.long(), len(windows.table)) * listed[..., None]).sum(-2)
    return lambda q, k, v: dense(q, k, v, (seen[:, :, rows // 128][..., rows // 128] > 0) & live)


def test_flash_of_pytorch_is_dense_attention():
    torch.testing.assert_close(baselines.DENSE["sdpa flash"](Q, K, V)(), dense(Q, K, V))


def test_comfyui_is_imported_on_demand_and_its_attention_is_dense(tmp_path):
    command = [sys.executable, "-c", ELSEWHERE, "dense", "--steps", "3"]
    paths = {"COMFYUI_PATH": str(setup.find_comfyui(setup.HOME)), "PYTHONPATH": str(REPO), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **paths}, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().startswith("attention_")


def test_seedvr2_block_runs(comfy, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(setup.find_comfyui(setup.HOME)))
    out = baselines.seedvr2_block((2, 5, 7), torch.device("cpu"), torch.float32)()
    assert out.shape == (2 * 5 * 7, 2560)
    assert out.isfinite().all()


def test_unpadding_undoes_padding_of_ragged_windows():
    torch.testing.assert_close(padded(identity, False, Q, K, V, WINDOWS, SELECTION)(), V, atol=0, rtol=0)
    ahead = padded(identity, True, Q, K, V, WINDOWS, SELECTION)()
    assert ahead.shape == (2, 3 * 128, 2, 16)
    for block, cell in zip(ahead.split(128, dim=1), CELLS, strict=True):
        assert torch.equal(block[:, : len(cell)], V[:, cell])


def test_padded_windows_attend_to_live_tokens_of_their_selection_only():
    window = torch.zeros(50, dtype=torch.long)
    for number, cell in enumerate(CELLS):
        window[cell] = number
    seen = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]], dtype=torch.bool)
    expected = dense(Q, K, V, seen[window][:, window])
    torch.testing.assert_close(padded(masked_dense, False, Q, K, V, WINDOWS, SELECTION)(), expected)
    ahead = padded(masked_dense, True, Q, K, V, WINDOWS, SELECTION)()
    torch.testing.assert_close(ahead[:, padding(WINDOWS)[1]], expected)


def test_flex_attention_never_runs_uncompiled():
    with torch.compiler.set_stance("force_eager"), pytest.raises(Unavailable, match=r"torch\.compile is switched off"):
        baselines.SPARSE["flex"](Q, K, V, WINDOWS, SELECTION)


@pytest.mark.parametrize("name", ["sdpa cudnn", "sdpa efficient", "flash-attn 3", "flash-attn 4"])
def test_what_needs_a_gpu_says_so(name):
    with pytest.raises(Unavailable, match=r"needs a CUDA device|needs an NVIDIA GPU"):
        baselines.DENSE[name](Q, K, V)


def test_block_sparse_kernels_say_what_they_need():
    with pytest.raises(Unavailable, match="needs an NVIDIA GPU"):
        baselines.SPARSE["cudnn block sparse"](Q, K, V, WINDOWS, SELECTION)
    large = SimpleNamespace(table=torch.arange(258).view(2, 129), length=torch.tensor([129, 129]))
    with pytest.raises(Unavailable, match="windows have up to 129 tokens"):
        baselines.SPARSE["flex"](Q, K, V, large, SELECTION)


def test_what_is_not_installed_says_so(monkeypatch, tmp_path):
    with pytest.raises(Unavailable, match="that-package is not installed or another version: No module named 'that_module'"):
        attribute("that-package", "that_module", "function")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="not a folder of ComfyUI"):
        baselines.DENSE["comfyui"](Q, K, V)
    with pytest.raises(Unavailable, match="not a folder of ComfyUI"):
        baselines.seedvr2_block((1, 2, 2), torch.device("cpu"), torch.float32)


def test_failure_of_the_first_run_is_the_reason():
    with pytest.raises(Unavailable, match=r"RuntimeError: .* must match"):
        checked(lambda: lambda: torch.zeros(2) + torch.zeros(3))()
