"""Others' checkpoints: read as they are, from every wrapping, fitted strictly; everything else is refused with what it is."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from conftest import DIT, save_dit
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from simplegvr_core.files import sha256
from simplegvr_core.networks import checkpoint, foreign
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.convert import Convert
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT, load_dit, parse_dit_config
from simplegvr_core.networks.ultra_upsampler import UltraUpsampler, UltraUpsamplerConfig
from simplegvr_core.networks.upsampler import load_upsampler, make_upsampler, parse_upsampler_config

SIZES = DiTConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=24, exact_time=True)
UPSAMPLER = UltraUpsamplerConfig(width=8, blocks=2, factors=(2,))
WRAPPINGS = {"bare": lambda x: x, "model": lambda x: {"model": x, "step": 7}, "generator": lambda x: {"generator": x, "critic": {}}}
PREFIXES = ["", "module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "model._fsdp_wrapped_module.", "model.diffusion_model."]
PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "ultraflash"


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(x.shape, generator=generator) / 8 for name, x in network.state_dict().items()}


@pytest.fixture(scope="module")
def dit() -> dict[str, torch.Tensor]:
    return weights(SimpleGVRDiT(SIZES, BlockCausalConfig(), device="meta"))


@pytest.fixture(scope="module")
def upsampler() -> dict[str, torch.Tensor]:
    return weights(UltraUpsampler(UPSAMPLER, device="meta"))


def save(path: Path, content) -> Path:
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_transformer_is_read_from_every_wrapping(tmp_path, dit, wrapping, prefix):
    path = save(tmp_path / "some_name.pth", WRAPPINGS[wrapping]({prefix + name: x for name, x in dit.items()}))
    model, config = load_dit(path)
    assert model.config == SIZES
    assert model.attention == BlockCausalConfig()
    assert config["sampling"] == {"steps": 1, "cfg": 1.0, "noise_augmentation": 0.0, "denoise": 1.0}
    assert config["origin"] == {"family": "Ultra Flash", "source": "some_name.pth", "assumed": True}
    assert all(torch.equal(model.state_dict()[name], x) for name, x in dit.items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_an_upsampler_is_read_by_its_shapes(tmp_path, suffix):
    config = UltraUpsamplerConfig(width=6, blocks=3, factors=(2, 3))
    content = weights(UltraUpsampler(config, device="meta"))
    model = load_upsampler(save(tmp_path / f"x{suffix}", content))
    assert model.config == config
    assert model.config.scale == 6
    assert all(torch.equal(model.state_dict()[name], x) for name, x in content.items())


def test_the_family_of_a_transformer_without_metadata_can_be_chosen(tmp_path, dit, caplog):
    path = save(tmp_path / "x.safetensors", dit)
    with caplog.at_level(logging.INFO):
        assert load_dit(path)[0].attention == BlockCausalConfig()
    assert "x.safetensors does not name its family and is read as Ultra Flash" in caplog.text
    model, config = load_dit(path, "SimpleGVR")
    assert model.attention == AttentionConfig()
    assert not model.config.exact_time
    assert config["origin"]["family"] == "SimpleGVR"
    assert load_dit(path, "Ultra Flash")[1]["origin"]["assumed"] is False


def test_our_own_files_are_what_their_metadata_says(tmp_path):
    model, config = load_dit(save_dit(tmp_path / "gvr.safetensors"), "Ultra Flash")
    assert model.config == DIT
    assert "origin" not in config


def released(config: UltraUpsamplerConfig | None, file: str) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    """Returns tensors without values of the names and shapes that a file lists, and our network of the released size."""
    lines = (PUBLISHED / file).read_text(encoding="utf-8").splitlines()
    shapes = {name: tuple(map(int, shape.split(","))) for name, shape in (line.split("\t") for line in lines)}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    network = SimpleGVRDiT(DiTConfig(), BlockCausalConfig(), device="meta") if config is None else UltraUpsampler(config, device="meta")
    return tensors, network


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the lists of the released files' keys are not here")
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "file, config",
    [
        ("keys_dit.tsv", None),
        ("keys_upsampler_x2.tsv", UltraUpsamplerConfig()),
        ("keys_upsampler_x3.tsv", UltraUpsamplerConfig(factors=(3,))),
    ],
)
def test_released_sizes_have_exactly_the_published_keys(prefix, file, config):
    tensors, network = released(config, file)
    path = Path(file)
    kind, described = foreign.describe(foreign.unprefixed({prefix + name: x for name, x in tensors.items()}, path), path, "auto")
    checkpoint.check_fit(network, tensors, path)
    if kind == "dit":
        assert parse_dit_config(described, path) == (DiTConfig(exact_time=True), BlockCausalConfig())
    else:
        assert parse_upsampler_config(described, path) == config
    checkpoint.check_fit(network, {name.removeprefix(prefix): x for name, x in tensors.items()}, path)


def test_released_sizes_are_these():
    """The same without the lists: names and numbers of parameters."""
    dit = SimpleGVRDiT(DiTConfig(), BlockCausalConfig(), device="meta").state_dict()
    assert (len(dit), sum(x.numel() for x in dit.values())) == (825, 1_419_095_104)
    for factors, parameters in (((2,), 4_814_352), ((3,), 4_907_152)):
        state = make_upsampler(UltraUpsamplerConfig(factors=factors), device="meta").state_dict()
        assert (len(state), sum(x.numel() for x in state.values())) == (52, parameters)


def without(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: x for name, x in tensors.items() if not name.startswith(prefix)}


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x | {"trap": Trap()}, r"holds other objects than tensors, which could run any code"),
        (lambda x: x | {"settings": {"lr": 1e-4}}, r"other things than a network's tensors, such as 'settings'"),
        (lambda x: list(x.values()), "holds list of no tensors"),
        (lambda x: {}, "holds dict of no tensors"),
        (lambda x: without(x, "head.head.bias"), r"1 problems: missing head\.head\.bias"),
        (lambda x: without(x, "patch_embedding.weight"), r"incomplete: missing patch_embedding\.weight"),
        (lambda x: without(x, "blocks.0."), r"incomplete: missing blocks\.0\.ffn\.0\.weight"),
        (lambda x: x | {"img_emb.proj.0.weight": torch.zeros(2)}, r"1 problems: unexpected img_emb\.proj\.0\.weight"),
        (lambda x: x | {"blocks.1.ffn.0.weight": torch.zeros(80, 128)}, r"blocks\.1\.ffn\.0\.weight is \(80, 128\), wanted \(96, 128\)"),
        (lambda x: x | {"patch_embedding.weight": torch.zeros(128, 48, 1, 2, 2)}, "with 48 input channels, wanted 32"),
        (lambda x: x | {"patch_embedding.weight": torch.zeros(128, 16, 1, 2, 2)}, r"a text-to-video Wan \(16\) works training-free"),
        (lambda x: x | {"patch_embedding.weight": torch.zeros(120, 32, 1, 2, 2)}, "is 120 wide, wanted a multiple of 128"),
        (lambda x: {("module." * (i % 2)) + name: y for i, (name, y) in enumerate(x.items())}, r"of 69 names begin with 'module\.'"),
        (lambda x: {f"{name}.lora_A.weight": y for name, y in x.items()}, "looks like a LoRA"),
        (lambda x: {f"decoder.{name}": y for name, y in x.items()}, "looks like an autoencoder or a decoder"),
        (lambda x: {f"unet.{name}": y for name, y in x.items()}, r"is no SimpleGVR checkpoint.* its first names are unet\."),
    ],
    ids=[
        "code", "values", "list", "empty", "missing", "no first layer", "no first block", "surplus", "shape", "48 channels", "16 channels",
        "width", "half prefixed", "lora", "decoder", "other",
    ],
)  # fmt: skip
def test_what_is_no_such_transformer_is_refused(tmp_path, dit, change, message):
    path = save(tmp_path / "x.pth", change(dict(dit)))
    with pytest.raises(ValueError, match=message) as caught:
        load_dit(path)
    assert str(path) in str(caught.value)


def test_a_network_in_the_others_place_is_refused(tmp_path, dit, upsampler):
    with pytest.raises(
        ValueError, match="holds a diffusion transformer, but a latent upsampler is wanted here: move it to models/diffusion_models"
    ):
        load_upsampler(save(tmp_path / "x.pth", dit))
    with pytest.raises(
        ValueError, match="holds a latent upsampler, but a diffusion transformer is wanted here: move it to models/latent_upscale"
    ):
        load_dit(save(tmp_path / "y.pth", upsampler))
    with pytest.raises(ValueError, match="is an upsampler of Ultra Flash, not of SimpleGVR"):
        load_upsampler(tmp_path / "y.pth", "SimpleGVR")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x | {"skip_up.0.weight": torch.zeros(2)}, "has a skip connection"),
        (lambda x: {name: y for name, y in x.items() if name != "final.weight"}, r"incomplete: missing final\.weight"),
        (lambda x: {name: y for name, y in x.items() if not name.startswith("blocks.0.")}, r"6 problems: missing blocks\.0"),
        (
            lambda x: x | {"blocks.1.conv.0.weight": torch.zeros(8, 8, 3, 3)},
            r"blocks\.1\.conv\.0\.weight is \(8, 8, 3, 3\), wanted \(8, 16, 3, 3\)",
        ),
    ],
    ids=["skip", "missing", "no first block", "shape"],
)
def test_what_is_no_such_upsampler_is_refused(tmp_path, upsampler, change, message):
    with pytest.raises(ValueError, match=message):
        load_upsampler(save(tmp_path / "x.pth", change(dict(upsampler))))


@pytest.mark.parametrize("length", [0, 10, 1000, -1000])
def test_a_truncated_pickle_is_refused(tmp_path, dit, length):
    path = save(tmp_path / "x.pth", dit)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"is not a complete PyTorch checkpoint .*: download it again"):
        load_dit(path)


def test_a_pickle_needs_a_pytorch_without_known_holes(tmp_path, dit, monkeypatch):
    path = save(tmp_path / "x.pth", dit)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cu130"))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"PyTorch 2\.9\.1\+cu130 cannot read safely: update PyTorch to 2\.10 or newer, or convert"):
        load_dit(path)
    for version in ("2.10.0", "2.11.0+cu130", "3.0.0a1"):
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
        assert foreign.torch_is_safe()


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            load_dit(tmp_path / name)


def test_a_file_of_other_sizes_than_the_released_is_said(tmp_path, dit, caplog):
    load_dit(save(tmp_path / "x.pth", dit))
    assert "x.pth is 128 wide with 2 layers; Ultra Flash's released transformers are 1536 wide with 30" in caplog.text


@pytest.mark.parametrize("which", ["dit", "upsampler"])
def test_converted_files_are_ours_and_equal(tmp_path, dit, upsampler, which):
    content = {name: x.bfloat16() for name, x in {"dit": dit, "upsampler": upsampler}[which].items()}
    source = save(tmp_path / "their.file.pth", {"generator": {f"model.{name}": x for name, x in content.items()}})
    out = Convert(source, family="Ultra Flash").run()
    path = tmp_path / "their.file.safetensors"
    digest = sha256(source)
    assert out == {"out": str(path), "kind": which, "family": "Ultra Flash", "tensors": len(content), "sha256": digest}
    assert {name: x.dtype for name, x in load_file(out["out"]).items()} == dict.fromkeys(content, torch.bfloat16)
    load = {"dit": lambda path: load_dit(path)[0], "upsampler": load_upsampler}[which]
    theirs, ours = load(source), load(Path(out["out"]))
    assert theirs.config == ours.config
    assert all(torch.equal(x, ours.state_dict()[name]) for name, x in theirs.state_dict().items())
    with safe_open(out["out"], framework="pt") as file:
        config = json.loads(file.metadata()[checkpoint.METADATA_KEY])
    assert config["origin"] == {
        "family": "Ultra Flash", "source": "their.file.pth", "assumed": False,
        "licence": "apache-2.0 (huggingface.co/xin1u/UltraFlash)", "sha256": sha256(source),
    }  # fmt: skip
    assert not math.isnan(sum(float(x.sum()) for x in ours.state_dict().values()))


def test_a_guess_stays_a_guess_when_converted(tmp_path, dit):
    path = Path(Convert(save(tmp_path / "x.pth", dit)).run()["out"])
    origin = checkpoint.read_config(path, "dit")["origin"]
    assert (origin["assumed"], origin["licence"]) == (True, "unknown, as the family was assumed")


@pytest.mark.parametrize("suffix", [".sft", ".SafeTensors"])
def test_safetensors_have_several_suffixes(tmp_path, dit, suffix):
    save(tmp_path / "x.safetensors", dit).rename(tmp_path / f"x{suffix}")
    assert load_dit(tmp_path / f"x{suffix}")[0].config.num_layers == 2


def test_files_that_are_none_are_refused(tmp_path, dit):
    with pytest.raises(ValueError, match="of no tensors, wanted a network's"):
        load_dit(save(tmp_path / "empty.safetensors", {}))
    torch.save(dit, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.pth is not a complete .* where it is of PyTorch before 1\.6, load it .* save it again"):
        load_dit(tmp_path / "old.pth")
    with pytest.raises(ValueError, match=r"patch_embedding\.weight has shape \(3,\), wanted 5 axes"):
        load_dit(save(tmp_path / "flat.safetensors", dit | {"patch_embedding.weight": torch.zeros(3)}))


def test_converting_refuses_what_it_cannot_do(tmp_path, dit):
    source = save(tmp_path / "x.safetensors", dit)
    ours = Convert(source, tmp_path / "ours.safetensors").run()["out"]
    with pytest.raises(ValueError, match="is a SimpleGVR checkpoint with its own configuration"):
        Convert(Path(ours), tmp_path / "again.safetensors").run()
    with pytest.raises(ValueError, match="--out is the source"):
        Convert(source).run()
    with pytest.raises(ValueError, match=r"wanted a name that ends with \.safetensors"):
        Convert(source, tmp_path / "y.pth").run()
    incomplete = save(tmp_path / "z.pth", {name: x for name, x in dit.items() if name != "head.head.bias"})
    with pytest.raises(ValueError, match=r"missing head\.head\.bias"):
        Convert(incomplete).run()
    assert not (tmp_path / "z.safetensors").exists()


def test_a_converted_transformer_trains_further(tmp_path, dit):
    path = Path(Convert(save(tmp_path / "x.pth", dit)).run()["out"])
    model = load_dit(path)[0].train()
    model(torch.randn(1, 32, 3, 4, 6), torch.tensor([500.0]), torch.randn(1, 3, 24)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
