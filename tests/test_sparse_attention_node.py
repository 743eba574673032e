"""SimpleGVR Sparse Attention on stock Wan models and on ours."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import DIT, latent
from test_nodes import conditioned_ksampler

from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import SimpleGVRDiT

ALL_WINDOWS = {"preset": "custom", "window_frames": 1, "window_height": 4, "window_width": 3, "top_k": 4096, "unit": 0, "radius": 0}
ONE_WINDOW = {**ALL_WINDOWS, "top_k": 1}


@pytest.fixture(scope="module")
def wan(comfy):
    return comfy.run("UNETLoader", unet_name="wan_test.safetensors", weight_dtype="default")[0]


def patch(comfy, model, preset):
    return comfy.run("SimpleGVRSparseAttention", model=model, preset=preset)[0]


def override_of(model):
    return model.model_options["transformer_options"]["optimized_attention_override"]


def reports(comfy, model, monkeypatch):
    """Returns the list of texts that the model's node will show."""
    texts, override = [], override_of(model)
    override.attention = replace(override.attention, node_id="7")
    monkeypatch.setattr(sys.modules[f"{comfy.pack.__name__}.nodes.host.attention"], "show_text", lambda node_id, text: texts.append(text))
    return texts


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if "SimpleGVR Sparse Attention" in record.getMessage()]


def sample(comfy, model, shape=(1, 16, 3, 18, 14), text=None, **conditions):
    conditioning = [[torch.zeros(1, 1, 4096) if text is None else text, conditions]]
    return comfy.run(
        "KSampler", model=model, seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", positive=conditioning,
        negative=conditioning, latent_image={"samples": torch.zeros(shape)}, denoise=1.0,
    )[0]["samples"]  # fmt: skip


def test_all_windows_on_stock_wan_is_dense(comfy, wan):
    torch.testing.assert_close(sample(comfy, patch(comfy, wan, ALL_WINDOWS)), sample(comfy, wan), atol=1e-5, rtol=0)


def test_one_window_on_stock_wan_is_not_and_the_input_model_is_unchanged(comfy, wan):
    dense = sample(comfy, wan)
    assert not torch.allclose(sample(comfy, patch(comfy, wan, ONE_WINDOW)), dense, atol=1e-3)
    assert torch.equal(sample(comfy, wan), dense)


def test_models_that_keep_attention_out_of_reach_are_refused(comfy):
    from comfy.ldm.wan.model import VaceWanModel

    vace = VaceWanModel(dim=128, ffn_dim=160, num_heads=1, num_layers=1, vace_layers=1, vace_in_dim=96, operations=torch.nn)
    with pytest.raises(ValueError, match="the model is a VaceWanModel, wanted"):
        patch(comfy, SimpleNamespace(model=SimpleNamespace(diffusion_model=vace)), ONE_WINDOW)


@pytest.mark.parametrize(
    "preset, line",
    [
        ("paper", "1080p: sdpa: 1680 windows of 1 x 12 x 9 tokens, each sees 2 of the whole video: 0.12 % of dense attention"),
        ("balanced", "1080p: sdpa: 1680 windows of 1 x 12 x 9 tokens, each sees 8: 0.48 % of dense attention"),
        ("dense units", "1080p: ComfyUI: full attention in units of 5 latent frames: 25 % of dense attention"),
    ],
)
def test_presets_run_and_their_report_forecasts_what_will(comfy, wan, preset, line):
    out, report = comfy.run("SimpleGVRSparseAttention", model=wan, preset={"preset": preset})
    assert report.startswith(f"{preset}\n")
    assert line in report
    assert sample(comfy, out, (1, 16, 7, 30, 22)).isfinite().all()


@pytest.mark.parametrize(
    "config, text",
    [
        (AttentionConfig(kind="full", unit=5), "ComfyUI: full attention in units of 5 latent frames: 100 % of dense attention"),
        (AttentionConfig(window=(64, 99, 99), top_k=7), "sdpa: 1 windows of 2 x 3 x 4 tokens, each sees 1: 100 % of dense attention"),
        (AttentionConfig(window=(1, 3, 2), top_k=99), "sdpa: 4 windows of 1 x 3 x 2 tokens, each sees 4: 100 % of dense attention"),
        (
            AttentionConfig(window=(1, 3, 2), top_k=0, radius=1),
            "sdpa: 4 windows of 1 x 3 x 2 tokens, each sees 1: at most 25 % of dense attention",
        ),
        (AttentionConfig(window=(1, 1, 1), top_k=0), "sdpa: 24 windows of 1 x 1 x 1 tokens, each sees 1: 4.2 % of dense attention"),
    ],
)
def test_the_report_says_what_there_is_not_what_was_asked_for(comfy, config, text):
    describe = sys.modules[f"{comfy.pack.__name__}.nodes.host.attention"].describe
    assert describe(config, (2, 3, 4), True, torch.device("cpu"), torch.float32, 128) == text


def direct(model, network, x, **kwargs):
    """Returns a network's velocity of x, with a model's transformer options and such inputs as other nodes add."""
    options = {**model.model_options["transformer_options"]}
    with torch.inference_mode():
        return network(x, torch.tensor([500.0]), torch.zeros(1, 1, 4096), transformer_options=options, **kwargs)


@pytest.mark.parametrize("scope", ["unit", "video"])
def test_stock_wan_with_the_node_is_our_network_with_that_attention(comfy, wan, scope):
    """Blocks and their shifted units included: eleven frames are two units, shifted three."""
    network = wan.model.diffusion_model.float()
    ours = SimpleGVRDiT(replace(DIT, in_dim=16), AttentionConfig(window=(1, 4, 3), top_k=1, unit=5, scope=scope))
    ours.load_state_dict(network.state_dict())
    x = torch.randn(1, 16, 11, 18, 14, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = ours(x, torch.tensor([500.0]), torch.zeros(1, 1, 4096))
    torch.testing.assert_close(
        direct(patch(comfy, wan, {**ONE_WINDOW, "unit": 5, "scope": scope}), network, x), expected, atol=1e-5, rtol=0
    )


def test_our_network_in_comfyui_is_the_cores(comfy):
    """Order of tokens and shifted units included: eleven frames are two units, shifted three."""
    model = comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")[0]
    network = model.model.diffusion_model.float()
    core = SimpleGVRDiT(DIT, network.attention)
    core.load_state_dict(network.state_dict())
    x = torch.randn(1, 32, 11, 18, 14, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = core(x, torch.tensor([500.0]), torch.zeros(1, 1, 4096))
    torch.testing.assert_close(direct(model, network, x), expected, atol=1e-5, rtol=0)


def test_reference_tokens_behind_the_grid_are_seen_and_see(comfy, wan):
    generator = torch.Generator().manual_seed(0)
    x, reference = torch.randn(1, 16, 3, 18, 14, generator=generator), torch.randn(1, 16, 1, 8, 10, generator=generator)
    network = wan.model.diffusion_model.float()
    dense = direct(wan, network, x, context_latents=[reference])
    every = direct(patch(comfy, wan, ALL_WINDOWS), network, x, context_latents=[reference])
    torch.testing.assert_close(every, dense, atol=1e-5, rtol=0)
    sparse = patch(comfy, wan, {**ONE_WINDOW, "top_k": 0})
    assert not torch.allclose(direct(sparse, network, x, context_latents=[reference]), dense, atol=1e-4)
    change = direct(sparse, network, x, context_latents=[reference]) - direct(sparse, network, x, context_latents=[reference + 1])
    assert change.abs().amax((0, 1)).min() > 0  # every token of the grid saw them


def test_tokens_before_the_grid_are_left_to_dense_attention_aloud(comfy, wan, monkeypatch, caplog):
    from comfy.sd import load_diffusion_model_state_dict

    generator = torch.Generator().manual_seed(0)
    state_dict = {key: tensor.clone() for key, tensor in wan.model.diffusion_model.state_dict().items()}
    state_dict |= {"ref_conv.weight": torch.randn(128, 16, 2, 2, generator=generator), "ref_conv.bias": torch.zeros(128)}
    model = load_diffusion_model_state_dict(state_dict)
    patched, reference = patch(comfy, model, ONE_WINDOW), torch.randn(1, 16, 1, 18, 14, generator=generator)
    shown = reports(comfy, patched, monkeypatch)
    assert torch.equal(sample(comfy, patched, reference_latents=[reference]), sample(comfy, model, reference_latents=[reference]))
    assert shown == ["dense, not sparse attention: there are tokens before the video's, as of a reference image"] * 2
    assert warnings(caplog) == [f"SimpleGVR Sparse Attention: {shown[0]}"]
    assert not torch.allclose(sample(comfy, patched), sample(comfy, model), atol=1e-4)
    assert shown[2:] == ["sdpa: 27 windows of 1 x 4 x 3 tokens, each sees 2: 8.9 % of dense attention"] * 2 and len(warnings(caplog)) == 1


def test_an_override_that_takes_the_slot_is_noticed(comfy, wan, monkeypatch, caplog):
    patched = patch(comfy, wan, ONE_WINDOW)
    shown, taken = reports(comfy, patched, monkeypatch), patched.clone()
    taken.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kwargs: func(*args, **kwargs)
    monkeypatch.setattr(torch.compiler, "reset", lambda: pytest.fail("nothing was compiled"))
    assert torch.equal(sample(comfy, taken), sample(comfy, wan))
    assert shown == ["dense, not sparse attention: another node replaced this node's attention"] * 2
    assert warnings(caplog) == [f"SimpleGVR Sparse Attention: {shown[0]}"]


def test_dense_parts_are_comfyuis_on_stock_wan(comfy, wan):
    seen, x = [], torch.randn(1, 11 * 9 * 7, 128)

    def earlier(func, q, *args, **kwargs):
        seen.append((func, q.shape[1]))
        return q + 1

    first = wan.clone()
    first.model_options["transformer_options"]["optimized_attention_override"] = earlier
    override = override_of(patch(comfy, first, {"preset": "dense units"}))
    out = override("ComfyUI's", x, x, x, 1, transformer_options={"block_index": 1, "grid_sizes": (11, 9, 7)})
    assert seen == [("ComfyUI's", frames * 63) for frames in (2, 5, 4)] and torch.equal(out, x + 1)


def test_dense_parts_are_comfyuis_in_our_model(comfy, monkeypatch):
    module, seen = sys.modules[f"{comfy.pack.__name__}.nodes.host.networks"], []
    dense = module.optimized_attention
    monkeypatch.setattr(module, "optimized_attention", lambda q, *args, **kwargs: seen.append(q.shape[1]) or dense(q, *args, **kwargs))
    model = comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")[0]
    conditioned_ksampler(comfy, patch(comfy, model, {"preset": "dense units"}), latent((1, 16, 7, 8, 6)), steps=1)
    even, odd = [7 * 12, 7 * 12], [2 * 12, 5 * 12, 7 * 12]  # the last one attends to the text
    assert seen == [*even, *odd, *even]


@pytest.mark.parametrize("place", ["positional mask", "mask", "scale"])
def test_masked_and_scaled_attention_goes_to_the_earlier_override(comfy, wan, place):
    seen, x = [], torch.randn(1, 3 * 9 * 7, 128)
    first = wan.clone()
    first.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kwargs: seen.append(args) or args[0]
    override = override_of(patch(comfy, first, ONE_WINDOW))
    change = torch.ones(1, 1, len(x[0]), len(x[0]), dtype=torch.bool)
    inputs = {"positional mask": ((change,), {}), "mask": ((), {"mask": change}), "scale": ((), {"scale": 0.5})}
    args, kwargs = inputs[place]
    override(None, x, x, x, 1, *args, transformer_options={"block_index": 0, "grid_sizes": (3, 9, 7)}, **kwargs)
    assert len(seen) == 1 and override.why_dense == "another node masks or scales it"


def test_cross_attention_of_the_grids_length_stays_dense(comfy, wan):
    """512 text tokens and a grid of 512 tokens have equal shapes."""
    text = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(0))
    shape = (1, 16, 2, 32, 32)
    torch.testing.assert_close(
        sample(comfy, patch(comfy, wan, ALL_WINDOWS), shape, text), sample(comfy, wan, shape, text), atol=1e-5, rtol=0
    )
    only_windows = {**ALL_WINDOWS, "top_k": 0}
    once, seen = patch(comfy, wan, only_windows), []
    override = once.model_options["transformer_options"]["optimized_attention_override"]

    def counting(func, *args, **kwargs):
        def dense(*inner, **inner_kwargs):
            seen.append(kwargs["transformer_options"]["block_index"])
            return func(*inner, **inner_kwargs)

        return override(dense, *args, **kwargs)

    once.model_options["transformer_options"]["optimized_attention_override"] = counting
    sample(comfy, once, shape, text)
    assert seen == [0, 1, 2] * 2


def test_an_earlier_override_is_kept_for_what_we_leave_alone(comfy, wan):
    calls = []

    def earlier(func, *args, **kwargs):
        calls.append(1)
        return func(*args, **kwargs)

    first = wan.clone()
    first.model_options["transformer_options"]["optimized_attention_override"] = earlier
    sample(comfy, patch(comfy, first, ONE_WINDOW))
    assert len(calls) == 3 * 2  # cross-attention of three blocks in two steps


def test_our_model_takes_the_nodes_attention(comfy):
    model = comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")[0]
    upscaled = latent((1, 16, 3, 18, 14))
    own = conditioned_ksampler(comfy, model, upscaled)
    as_own = {**ONE_WINDOW, "unit": 5}
    torch.testing.assert_close(conditioned_ksampler(comfy, patch(comfy, model, as_own), upscaled), own, atol=1e-6, rtol=0)
    assert not torch.allclose(conditioned_ksampler(comfy, patch(comfy, model, ALL_WINDOWS), upscaled), own, atol=1e-4)


OURS = ("SimpleGVRLoadModel", {"model_name": "gvr_test.safetensors"}, (None, ONE_WINDOW, ALL_WINDOWS, None))
STOCK = ("UNETLoader", {"unet_name": "wan_test.safetensors"}, (None, ONE_WINDOW, ALL_WINDOWS, None, ONE_WINDOW))


def compiled_model(model):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = model.clone()
    no_guards = {"guard_filter_fn": lambda entries: ["transformer_options" not in entry.name for entry in entries]}  # TorchCompileModel's
    set_torch_compile_wrapper(compiled, backend="eager", options=no_guards)
    return compiled


@pytest.mark.parametrize("loader, name, presets", [OURS, STOCK])
def test_a_compiled_model_takes_every_change_of_attention(comfy, loader, name, presets):
    model = comfy.run(loader, **name, weight_dtype="default")[0]
    compiled = compiled_model(model)
    upscaled = latent((1, 16, 3, 18, 14))
    torch.compiler.reset()
    for preset in presets:
        pair = [patch(comfy, m, preset) if preset else m for m in (model, compiled)]
        outs = [conditioned_ksampler(comfy, m, upscaled) for m in pair]
        torch.testing.assert_close(*outs, atol=1e-5, rtol=0)


def test_a_dense_run_after_a_reset_of_the_compiler_is_noticed(comfy, wan, monkeypatch, caplog):
    """By the same override that ran before. One that took its place costs one reset, not one a step."""
    patched = patch(comfy, wan, ONE_WINDOW)
    expected, compiled = sample(comfy, patched), compiled_model(patched)
    torch.compiler.reset()
    dense = sample(comfy, compiled_model(wan))
    torch.testing.assert_close(sample(comfy, compiled), expected, atol=1e-5, rtol=0)
    assert not warnings(caplog)
    taken, resets, reset = compiled.clone(), [], torch.compiler.reset
    taken.model_options["transformer_options"]["optimized_attention_override"] = torch.compiler.disable(lambda f, *a, **k: f(*a, **k))
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(reset()))
    torch.testing.assert_close(sample(comfy, taken), dense, atol=1e-5, rtol=0)
    assert len(resets) == len(warnings(caplog)) == 1


def test_cross_attention_of_the_grids_length_stays_dense_in_our_model(comfy):
    model = comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")[0]
    text = [[torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(0)), {}]]
    upscaled = latent((1, 16, 2, 32, 32))
    positive, negative, empty = comfy.run(
        "SimpleGVRConditioning", positive=text, negative=text, upscaled=upscaled, noise_augmentation=0.4, noise_seed=2
    )
    inputs = dict(seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    inputs |= dict(positive=positive, negative=negative, latent_image=empty)
    as_own = {**ONE_WINDOW, "unit": 5}
    own = comfy.run("KSampler", model=model, **inputs)[0]["samples"]
    torch.testing.assert_close(comfy.run("KSampler", model=patch(comfy, model, as_own), **inputs)[0]["samples"], own, atol=1e-6, rtol=0)
