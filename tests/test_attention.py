"""Attention: kernels agree, limits are exact, each window sees what it should and nothing else."""

import logging
from dataclasses import astuple, replace
from threading import Thread
from time import sleep
from types import SimpleNamespace

import pytest
import torch
from conftest import ATTENTION, DIT, random_weights
from torch.utils._python_dispatch import TorchDispatchMode

from simplegvr_core.networks import attention, kernels
from simplegvr_core.networks import windows as windows_module
from simplegvr_core.networks.attention import AttentionConfig, attend, full_attention, select_windows
from simplegvr_core.networks.dit import SimpleGVRDiT
from simplegvr_core.networks.kernels import KernelCase, reference, sdpa
from simplegvr_core.networks.layers import exact_float32
from simplegvr_core.networks.windows import TokenLayout, cut_windows

pytestmark = pytest.mark.usefixtures("one_thread")
CASE = KernelCase(torch.device("cuda"), torch.bfloat16, 128, 108, contiguous=True, training=True)
GRIDS = [(3, 5, 7), (5, 9, 13), (20, 12, 18)]
CONFIGS = [
    AttentionConfig(window=(1, 4, 3), top_k=0),
    AttentionConfig(window=(1, 4, 3), top_k=1),
    AttentionConfig(window=(2, 4, 5), top_k=3, unit=None),
    AttentionConfig(window=(2, 2, 2), top_k=3, radius=1),
    AttentionConfig(window=(1, 5, 7), top_k=7),  # more than a short unit has
    AttentionConfig(window=(1, 4, 3), top_k=2, scope="video"),
    AttentionConfig(kind="swin", window=(2, 3, 4)),
]


def qkv(grid, batch=2, heads=3, dim=8, condition_tokens=0):
    generator = torch.Generator().manual_seed(0)
    length = grid[0] * grid[1] * grid[2] + condition_tokens
    return [torch.randn(batch, length, heads, dim, generator=generator) for _ in range(3)]


def chosen(q, k, grid, config, block=0):
    return select_windows(q, k, config.windows(TokenLayout(grid), block), config, reference)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("condition_tokens", [0, 17])
def test_sdpa_equals_reference_in_both_orders_of_tokens(grid, block, config, condition_tokens):
    batch, heads = (1, 1) if grid[0] == 20 else (2, 3)  # the reference is a slow loop
    q, k, v = qkv(grid, batch, heads, condition_tokens=condition_tokens)
    layout = TokenLayout(grid, num_condition_tokens=condition_tokens)
    expected = attend(q, k, v, layout, config, block, kernel=reference)
    torch.testing.assert_close(attend(q, k, v, layout, config, block, kernel=sdpa), expected, atol=1e-5, rtol=0)
    length = grid[0] * grid[1] * grid[2]
    order = config.token_order(grid)
    order = torch.arange(length + condition_tokens) if order is None else torch.cat((order, length + torch.arange(condition_tokens)))
    ordered = attend(q[:, order], k[:, order], v[:, order], replace(layout, ordered=True), config, block)
    torch.testing.assert_close(ordered[:, order.argsort()], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("condition_tokens", [0, 17])
def test_all_windows_selected_is_full_attention(grid, condition_tokens):
    q, k, v = qkv(grid, condition_tokens=condition_tokens)
    config = AttentionConfig(window=(1, 4, 3), top_k=10_000, unit=None)
    layout = TokenLayout(grid, num_condition_tokens=condition_tokens)
    torch.testing.assert_close(attend(q, k, v, layout, config, 0), full_attention(q, k, v), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_small_chunks_change_nothing(monkeypatch, config):
    q, k, v = qkv((5, 9, 13))
    whole = attend(q, k, v, TokenLayout((5, 9, 13)), config, 1)
    monkeypatch.setattr(sdpa, "CACHE_BYTES", 1)
    monkeypatch.setattr(attention, "SCORE_BYTES", 1)
    torch.testing.assert_close(attend(q, k, v, TokenLayout((5, 9, 13)), config, 1), whole)


def test_scores_and_gathered_keys_keep_to_their_budget_in_full_precision(monkeypatch):
    """Budgets of a fifth of what all windows take together; TensorFloat-32 was allowed before."""
    seen, right = {"scores": [], "keys": [], "precision": set()}, (torch.einsum, torch.nn.functional.scaled_dot_product_attention)

    def einsum(*args):
        scores = right[0](*args)
        seen["scores"].append(scores.nbytes)
        seen["precision"].add((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return scores

    def attention_of(q, k, v, **kwargs):
        seen["keys"].append(k.nbytes + v.nbytes)
        return right[1](q, k, v, **kwargs)

    monkeypatch.setattr(torch, "einsum", einsum)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention_of)
    q, k, v = qkv((5, 9, 13))
    attend(q, k, v, TokenLayout((5, 9, 13)), ATTENTION, 0)
    scores, keys = sum(seen["scores"]) // 5, sum(seen["keys"]) // 5
    monkeypatch.setattr(attention, "SCORE_BYTES", scores)
    monkeypatch.setattr(sdpa, "CACHE_BYTES", keys)
    seen.update(scores=[], keys=[])
    torch.set_float32_matmul_precision("medium")
    try:
        attend(q, k, v, TokenLayout((5, 9, 13)), ATTENTION, 0)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert max(seen["scores"]) <= scores and max(seen["keys"]) <= keys
    assert seen["precision"] == {("ieee", "ieee")}


@pytest.mark.parametrize("kind", ["full", "sparse_local"])
@pytest.mark.parametrize("block, lengths", [(0, [5, 6]), (1, [2, 5, 4])])
def test_nothing_is_seen_outside_the_temporal_unit(kind, block, lengths):
    grid, frame = (11, 3, 4), 12
    q, k, v = qkv(grid)
    config = AttentionConfig(kind=kind, window=(1, 3, 4), top_k=1000, unit=5)
    before = attend(q, k, v, TokenLayout(grid), config, block)
    v[:, : lengths[0] * frame] += 1
    change = (attend(q, k, v, TokenLayout(grid), config, block) - before).abs().amax((0, 2, 3)).view(grid).amax((1, 2))
    assert (change > 0.5).tolist() == [True] * lengths[0] + [False] * (11 - lengths[0])


@pytest.mark.parametrize("scope", ["unit", "video"])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("window, top_k", [((1, 3, 4), 1), ((1, 2, 3), 4), ((3, 3, 4), 2)])
def test_each_scope_equals_a_mask_built_token_by_token(scope, block, window, top_k):
    """Dense attention in float64 under a mask: a token sees its window and the top_k others of highest mean q times mean k in scope."""
    grid = (13, 5, 7)
    inputs = torch.randn(3, 1, 13 * 35, 2, 8, generator=torch.Generator().manual_seed(1)).unbind()  # no near ties among its scores
    q, k, v = (x.double() for x in inputs)
    lengths = {0: (5, 5, 3), 1: (2, 5, 6)}[block]
    unit_of_frame = [unit for unit, length in enumerate(lengths) for _ in range(length)]
    place = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), dim=-1).view(-1, 3).tolist()
    first_frame = [sum(lengths[:unit]) for unit in unit_of_frame]
    token_window = [(unit_of_frame[t], (t - first_frame[t]) // window[0], y // window[1], x // window[2]) for t, y, x in place]
    members = {name: [i for i, other in enumerate(token_window) if other == name] for name in dict.fromkeys(token_window)}
    mask = torch.zeros(2, len(place), len(place), dtype=torch.bool)
    for head in range(2):
        for name, tokens in members.items():
            others = [other for other in members if other != name and (scope == "video" or other[0] == name[0])]
            score = {other: float(q[0, tokens, head].mean(0) @ k[0, members[other], head].mean(0)) for other in others}
            seen = [name, *sorted(others, key=lambda other: -score[other])[:top_k]]
            for other in seen:
                mask[head, torch.tensor(tokens)[:, None], torch.tensor(members[other])] = True
    weights = (torch.einsum("LnD, MnD -> nLM", q[0], k[0]) / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    expected = torch.einsum("nLM, MnD -> LnD", weights, v[0])[None].float()
    config = AttentionConfig(window=window, top_k=top_k, scope=scope)
    torch.testing.assert_close(attend(*inputs, TokenLayout(grid), config, block), expected, atol=1e-5, rtol=0)


def test_scope_video_reaches_future_frames_beyond_the_unit():
    grid, frame = (13, 3, 4), 12
    q, k, v = qkv(grid)
    config = AttentionConfig(window=(1, 3, 4), top_k=1000, scope="video")
    before = attend(q, k, v, TokenLayout(grid), config, 0)
    v[:, -frame:] += 1
    change = (attend(q, k, v, TokenLayout(grid), config, 0) - before).abs().amax((0, 2, 3)).view(grid).amax((1, 2))
    assert (change > 0.01).all()


def test_condition_tokens_are_seen_by_all_and_see_all():
    grid, config = (11, 3, 4), AttentionConfig(window=(1, 3, 2), top_k=1)
    q, k, v = qkv(grid, condition_tokens=5)
    layout = TokenLayout(grid, num_condition_tokens=5)
    before = attend(q, k, v, layout, config, 0)
    v[:, -5:] += 1
    assert (attend(q, k, v, layout, config, 0) - before).abs().amax((0, 2, 3)).min() > 0.01
    torch.testing.assert_close(
        before[:, -5:], full_attention(q[:, -5:], k, v - torch.cat((torch.zeros(132), torch.ones(5)))[:, None, None])
    )


def test_selection_finds_the_most_similar_window_and_counts_live_tokens_only():
    grid, config = (1, 3, 5), AttentionConfig(window=(1, 2, 2), top_k=2)  # the last row and column are ragged
    table = config.windows(TokenLayout(grid), 0).table
    q, k = torch.zeros(1, 15, 1, 4), torch.zeros(1, 15, 1, 4)
    q[:, table[0]] = torch.tensor([1.0, 0, 0, 0])
    k[:, table[3][table[3] >= 0]] = torch.tensor([0.5, 0, 0, 0])  # two live tokens
    k[:, table[5][table[5] >= 0]] = torch.tensor([0.6, 0, 0, 0])  # one live token: the larger mean
    for kernel in (reference, sdpa):
        assert select_windows(q, k, config.windows(TokenLayout(grid), 0), config, kernel)[0, 0, 0].tolist() == [0, 5, 3]


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("radius", [None, 1])
def test_selection_is_what_a_plain_loop_selects(top_k, radius):
    grid, config = (7, 9, 13), AttentionConfig(window=(2, 4, 3), top_k=top_k, unit=5, radius=radius)
    q, k, _ = qkv(grid)
    windows, selection = config.windows(TokenLayout(grid), 1), chosen(q, k, grid, config, 1)
    q_mean, k_mean = (reference.window_mean(x, windows).double() for x in (q, k))
    unit_of = {int(window): unit for unit, members in enumerate(windows.scope) for window in members if window >= 0}
    for batch, head, window in torch.cartesian_prod(*(torch.arange(extent) for extent in selection.shape[:3])).tolist():
        near = [
            other
            for other in range(windows.num_windows)
            if other != window
            and unit_of[other] == unit_of[window]
            and (radius is None or (windows.place[other] - windows.place[window]).abs().max() <= radius)
        ]
        near.sort(key=lambda other: -float(q_mean[batch, window, head] @ k_mean[batch, other, head]))
        expected = [window, *near[:top_k], *[-1] * (top_k - len(near))]
        assert selection[batch, head, window].tolist() == expected


@pytest.mark.parametrize("window", [(1, 4, 3), (1, 3, 13)])
def test_means_of_halves_are_taken_in_float32(window):
    windows = cut_windows((5, 9, 13), window, (5,), window_major=True)
    x = 100 + qkv((5, 9, 13))[0].bfloat16()
    torch.testing.assert_close(sdpa.window_mean(x, windows), reference.window_mean(x, windows), atol=1e-4, rtol=0)


def test_heads_and_batch_entries_select_for_themselves():
    q, k, v = qkv((5, 9, 13))
    together = attend(q, k, v, TokenLayout((5, 9, 13)), ATTENTION, 0)
    alone = attend(q[1:, :, 2:], k[1:, :, 2:], v[1:, :, 2:], TokenLayout((5, 9, 13)), ATTENTION, 0)
    torch.testing.assert_close(together[1:, :, 2:], alone, atol=1e-6, rtol=0)


def test_unknown_kind_and_scope_are_refused():
    with pytest.raises(ValueError, match="full, swin, sparse_local"):
        AttentionConfig(kind="dense")
    with pytest.raises(ValueError, match="scope is 'clip', wanted one of unit, video"):
        AttentionConfig(scope="clip")
    with pytest.raises(ValueError, match="kind 'full' selects no windows"):
        AttentionConfig(kind="full", scope="video")


@pytest.mark.parametrize("wrong", [{"window": (0, 12, 9)}, {"top_k": -1}, {"unit": 0}])
def test_impossible_windows_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted sides and unit >= 1, top_k >= 0"):
        AttentionConfig(**wrong)


def test_mixed_precision_selects_the_same_windows_and_leaves_no_trace():
    q, k, _ = qkv((5, 9, 13))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            mixed = chosen(q, k, (5, 9, 13), ATTENTION)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(mixed, chosen(q, k, (5, 9, 13), ATTENTION))


def test_precision_set_by_pytorchs_newer_switch_is_left_as_it_was():
    """With which the older switch cannot be read."""
    q, k, _ = qkv((5, 9, 13))
    gpu, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    gpu.fp32_precision, cpu.fp32_precision = "tf32", "bf16"
    try:
        chosen(q, k, (5, 9, 13), ATTENTION)
        assert (gpu.fp32_precision, cpu.fp32_precision) == ("tf32", "bf16")
    finally:
        gpu.fp32_precision = cpu.fp32_precision = "ieee"


def test_older_pytorch_keeps_its_precision_too(monkeypatch):
    torch.set_float32_matmul_precision("medium")
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace())
    try:
        with exact_float32(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_leave_each_other_the_right_precision():
    seen = []

    def score():
        for _ in range(5):
            with exact_float32(torch.device("cpu")):
                sleep(0.002)
                seen.append(torch.backends.cuda.matmul.fp32_precision)

    torch.set_float32_matmul_precision("medium")
    try:
        threads = [Thread(target=score) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == ["ieee"] * 15 and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_mixed_precision_attends_in_the_precision_of_v():
    q, k, v = qkv((5, 9, 13))
    assert attend(q, k, v.bfloat16(), TokenLayout((5, 9, 13)), ATTENTION, 0).dtype == torch.bfloat16


def test_float32_under_mixed_precision_attends(monkeypatch):
    q, k, v = qkv((5, 9, 13))
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, TokenLayout((5, 9, 13)), ATTENTION, 0)
    torch.testing.assert_close(out, attend(q, k, v, TokenLayout((5, 9, 13)), ATTENTION, 0), atol=0.02, rtol=0.02)


def test_windows_cut_in_inference_serve_training():
    with torch.inference_mode():
        cut_windows((3, 5, 9), (1, 4, 3), (3,))
    q, k, v = (x.requires_grad_() for x in qkv((3, 5, 9)))
    attend(q, k, v, TokenLayout((3, 5, 9)), ATTENTION, 0).square().sum().backward()
    assert q.grad.any() and k.grad.any() and v.grad.any()


def test_what_keeps_triton_away_is_logged_once_and_the_windows_stay(monkeypatch, caplog):
    pytest.importorskip("triton")
    asked = []

    def broken(case):
        asked.append(case)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels.load("triton"), "check", broken)
    kernels.fastest.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert kernels.fastest(CASE) == "sdpa"
    assert asked == [CASE]
    kernels.fastest.cache_clear()
    assert [record.getMessage() for record in caplog.records if "no compiler" in record.getMessage()] == [
        "SimpleGVR: attention in windows of 108 tokens, torch.bfloat16, runs by PyTorch's attention, without Triton: "
        "RuntimeError('no compiler')"
    ]


def test_a_full_gpu_is_no_verdict_on_triton(monkeypatch):
    pytest.importorskip("triton")
    kernels.fastest.cache_clear()
    monkeypatch.setattr(kernels.load("triton"), "check", lambda case: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        kernels.fastest(CASE)
    monkeypatch.setattr(kernels.load("triton"), "check", lambda case: None)
    assert kernels.fastest(CASE) == "triton"
    kernels.fastest.cache_clear()


def test_attention_asks_for_the_kernel_of_its_own_windows(monkeypatch):
    asked, (q, k, v) = [], qkv((3, 5, 7))
    monkeypatch.setattr(kernels, "fastest", lambda case: asked.append(case) or "sdpa")
    attend(q, k, v, TokenLayout((3, 5, 7), ordered=True), AttentionConfig(window=(1, 4, 3)), 0)
    attend(q.requires_grad_(), k, v, TokenLayout((3, 5, 7)), AttentionConfig(window=(2, 4, 5)), 0)
    assert [astuple(case)[2:] for case in asked] == [(8, 12, True, False), (8, 40, False, True)]


def test_a_call_waits_for_the_device_once_however_many_its_chunks(monkeypatch):
    q, k, v = qkv((5, 9, 13))
    windows = cut_windows((5, 9, 13), (1, 4, 3), (5,))
    selection = torch.stack((torch.arange(75), torch.arange(75).roll(1)), -1).expand(2, 3, -1, -1).clone()
    waits = []

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
                waits.append(function)
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(sdpa, "CACHE_BYTES", 1)
    with Waits():
        sdpa.window_attention(q, k, v, windows, selection)
    assert len(waits) <= 1


def test_compiled_network_cuts_windows_as_ever(monkeypatch):
    model = random_weights(SimpleGVRDiT(replace(DIT, num_layers=2), ATTENTION))
    x, inputs = torch.randn(1, 32, 6, 10, 6), (torch.tensor([500.0]), torch.randn(1, 3, 4096))
    expected, traced = model(x, *inputs), []
    right = windows_module.number_windows
    monkeypatch.setattr(windows_module, "number_windows", lambda *a: traced.append(torch.compiler.is_compiling()) or right(*a))
    windows_module.cut_windows.cache_clear()
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager")(x, *inputs), expected, atol=1e-5, rtol=0)
    assert traced and not any(traced)
