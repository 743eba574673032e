"""A control LoRA merged into a text-to-video Wan: what ComfyUI makes of the two, as a SimpleGVR checkpoint; others refused by name."""

import json
import math

import pytest
import torch
from conftest import DIT, LATENT, latent, random_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.convert import main
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT, load_dit

SIZES = {"dim": 128, "ffn_dim": 160, "num_heads": 1, "num_layers": 2}
LAYERS = {"blocks.0.self_attn.q": (128, 128), "blocks.1.cross_attn.v": (128, 128), "blocks.1.ffn.0": (160, 128), "head.head": (64, 128)}
RANK = 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape) + seed))


def base_tensors(**changes) -> dict[str, Tensor]:
    network = SimpleGVRDiT(DiTConfig(in_dim=16, **{**SIZES, **changes}), AttentionConfig(kind="full", unit=None))
    return dict(random_weights(network).state_dict())


def lora_tensors(down: str = "lora_A", up: str = "lora_B", alpha: float | None = None) -> dict[str, Tensor]:
    """Returns a LoRA with the names and shapes of the tile control LoRA, small; reshape_weight is ComfyUI's."""
    tensors = {"patch_embedding.reshape_weight": torch.tensor([128, 32, 1, 2, 2])}
    for layer, (rows, columns) in LAYERS.items():
        tensors |= {f"{layer}.{down}.weight": random(RANK, columns), f"{layer}.{up}.weight": random(rows, RANK)}
    tensors |= {f"patch_embedding.{down}.weight": random(RANK, 32, 1, 2, 2), f"patch_embedding.{up}.weight": random(128, RANK, 1, 1, 1)}
    tensors |= {"blocks.0.norm3.diff": random(128), "blocks.0.norm3.diff_b": random(128, seed=1), "blocks.1.ffn.2.diff_b": random(128)}
    if alpha is not None:
        tensors |= {f"{layer}.alpha": torch.tensor(alpha) for layer in (*LAYERS, "patch_embedding")}
    return {f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}


@pytest.fixture
def files(tmp_path):
    """Writes a LoRA and a base; returns the arguments of convert, and where it writes."""

    def write(lora: dict[str, Tensor], base: dict[str, Tensor]) -> tuple[list[str], str]:
        save_file(lora, tmp_path / "tile_control.safetensors")
        save_file(base, tmp_path / "wan_t2v.safetensors")
        inputs = ["--lora", str(tmp_path / "tile_control.safetensors"), "--base", str(tmp_path / "wan_t2v.safetensors")]
        return [*inputs, "--dtype", "float32"], tmp_path / "tile_control_merged.safetensors"

    return write


def by_comfyui(lora: dict[str, Tensor], base: dict[str, Tensor]):
    """Returns the MODEL of ComfyUI's own LoRA loader, with the LoRA's weights in place."""
    import comfy.sd

    model = comfy.sd.load_diffusion_model_state_dict({name: tensor.clone() for name, tensor in base.items()})
    model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)
    model.patch_model()
    return model


@pytest.mark.parametrize("names", [("lora_A", "lora_B", None), ("lora_down", "lora_up", 2.0)])
def test_the_merged_weights_are_those_of_comfyuis_lora_loader(comfy, files, names):
    lora, base = lora_tensors(*names), base_tensors()
    arguments, out = files(lora, base)
    result = main(arguments)
    assert result == {"out": str(out), "kind": "dit", "family": "control LoRA", "tensors": len(base), "sha256": result["sha256"]}
    merged, expected = load_file(out), by_comfyui(lora, base).model.diffusion_model.state_dict()
    assert merged["patch_embedding.weight"].shape == (128, 32, 1, 2, 2)
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name].float(), atol=1e-6, rtol=0)
        touched = any(name.startswith(f"{layer}.") for layer in (*LAYERS, "patch_embedding", "blocks.0.norm3", "blocks.1.ffn.2"))
        assert touched or torch.equal(tensor, base[name]), name


def test_the_checkpoint_says_how_it_is_sampled_and_where_it_comes_from(files):
    arguments, out = files(lora_tensors(), base_tensors())
    main(arguments)
    with safe_open(out, "pt") as file:
        config = json.loads(file.metadata()["simplegvr_config"])
    assert config["attention"]["kind"] == "full" and config["attention"]["unit"] is None
    assert config["sampling"] == {"steps": 25, "cfg": 3.0, "noise_augmentation": 0.0, "denoise": 1.0}
    origin = config["origin"]
    assert (origin["source"], origin["base"]) == ("tile_control.safetensors", "wan_t2v.safetensors")
    assert "LoRA" in origin["licence"] and len(origin["sha256"]) == 64
    model, _ = load_dit(out)
    assert model.config == DiTConfig(**SIZES) and model.attention.kind == "full"


def test_in_comfyui_it_samples_as_the_lora_behind_the_stock_loader(comfy, checkpoints, sample, files, upsampler):
    """Stock KSampler on both, with the condition of SimpleGVR Conditioning; then SimpleGVR Sampler with the checkpoint's settings."""
    import shutil

    from test_nodes import conditioned_ksampler

    lora, base = lora_tensors(), base_tensors()
    arguments, out = files(lora, base)
    main(arguments)
    shutil.copy(out, checkpoints / "diffusion_models" / "tile_merged.safetensors")
    ours = comfy.run("SimpleGVRLoadModel", model_name="tile_merged.safetensors", weight_dtype="default")[0]
    stock = comfy.run("ModelSamplingSD3", model=by_comfyui(lora, base), shift=5.0)[0]
    outs = [conditioned_ksampler(comfy, model, latent((1, 16, 3, 8, 6))) for model in (ours, stock)]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=0)
    prompt = [[torch.randn(1, 6, 4096, generator=torch.Generator().manual_seed(0)), {}]]
    out, report = sample(model=ours, settings="recommended", positive=prompt, latent=latent(LATENT))
    assert "25 steps, cfg 3, shift 5" in report and "no prompt" not in report and out.isfinite().all()
    assert "neither Wan nor its control LoRA was trained with the null prompt" in sample(model=ours, steps=1)[1]


def replaced(tensors: dict[str, Tensor], **changes) -> dict[str, Tensor]:
    """Returns tensors with some replaced; None removes one. Double underscores stand for dots."""
    tensors = tensors | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


Q = "diffusion_model__blocks__0__self_attn__q__"


@pytest.mark.parametrize(
    "lora, base, message",
    [
        (
            lora_tensors(),
            base_tensors(dim=256, num_heads=2),
            r"was made for another model than .*wan_t2v.*the base's weight is \(256, ",
        ),
        (lora_tensors(), base_tensors(num_layers=1), r"another model than .* it changes blocks\.1\.cross_attn\.v, which the base does not"),
        (replaced(lora_tensors(), lora_unet_down_blocks__alpha=torch.tensor(1.0)), base_tensors(), "mixes two networks"),
        (replaced(lora_tensors(), **{f"{Q}lora_B__weight": None}), base_tensors(), r"blocks\.0\.self_attn\.q has only one of its two"),
        (replaced(lora_tensors(), **{f"{Q}dora_scale": torch.ones(128, 1)}), base_tensors(), r"has blocks\.0\.self_attn\.q\.dora_scale"),
        (replaced(lora_tensors(), **{f"{Q}lora_A__weight": torch.ones(8, 128)}), base_tensors(), "made for another model"),
        (
            {name: tensor for name, tensor in lora_tensors().items() if "patch_embedding" not in name},
            base_tensors(),
            r"makes 16 input channels, wanted 32, .*LoraLoaderModelOnly",
        ),
        (
            replaced(lora_tensors(), diffusion_model__patch_embedding__reshape_weight=torch.tensor([64, 32, 1, 2, 2])),
            base_tensors(),
            "made for another model",
        ),
        (
            {
                "diffusion_model.patch_embedding.reshape_weight": torch.tensor([10**6, 10**6, 10**3, 2, 2]),
                "diffusion_model.patch_embedding.diff_b": random(10**6),
            },
            base_tensors(),
            "made for another model",  # and no terabytes
        ),
        (lora_tensors(), dict(SimpleGVRDiT(DIT, AttentionConfig()).state_dict()), r"has 32 input channels, wanted 16"),
        (lora_tensors(), {"decoder.1.weight": torch.zeros(1)}, "is no Wan transformer, it has no patch_embedding"),
        (
            lora_tensors(),
            replaced(base_tensors(), blocks__0__ffn__0__weight=torch.zeros(160, 128, dtype=torch.float8_e4m3fn)),
            r"is quantised, blocks\.0\.ffn\.0\.weight is torch\.float8_e4m3fn",
        ),
        (lora_tensors(), replaced(base_tensors(), time_embedding__0__weight=None), r"is incomplete: missing time_embedding\.0\.weight"),
        (lora_tensors(), replaced(base_tensors(), blocks__0__self_attn__k__weight=None), r"missing blocks\.0\.self_attn\.k\.weight"),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(files, lora, base, message):
    arguments, out = files(lora, base)
    with pytest.raises(ValueError, match=message):
        main(arguments)
    assert not out.exists()


def test_the_command_wants_one_source(files):
    arguments, _ = files(lora_tensors(), base_tensors())
    for wrong in (arguments[:2], arguments[2:4], [arguments[1], *arguments], []):
        with pytest.raises(ValueError, match="either a source, or --lora and --base together"):
            main(wrong)
    with pytest.raises(ValueError, match="--out is the source"):
        main([*arguments, "--out", arguments[3]])


def test_a_lora_alone_is_refused_with_the_command_that_merges_it(files):
    arguments, out = files(lora_tensors(), base_tensors())
    with pytest.raises(ValueError, match=r"looks like a LoRA: .* convert --lora --base"):
        main([arguments[1], "--out", str(out)])
