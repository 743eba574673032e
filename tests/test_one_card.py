"""What lets a training fit one card: AdamW's moments in 8 bits, no moving average, a LoRA beside a base in float8."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import ATTENTION, DIT, REPO, random_weights
from safetensors.torch import load_file
from sources import Points
from torch import nn

from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.dit import SimpleGVRDiT, load_dit
from simplegvr_core.networks.lora_merge import add_lora_file
from simplegvr_core.networks.upsampler import UpsamplerConfig, make_upsampler
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.draws import Draws
from simplegvr_core.training.frozen import Float8Linear
from simplegvr_core.training.loop import LoopConfig, fit
from simplegvr_core.training.loss import FlowNoise
from simplegvr_core.training.moments import has_8_bits, moment_bytes
from simplegvr_core.training.optimizer_step import adamw, train_step
from simplegvr_core.training.presets import PRESETS
from simplegvr_core.training.train import Train

pytestmark = pytest.mark.usefixtures("one_thread")
LOOP = LoopConfig(steps=12, learning_rate=1e-2, warmup=2, save_every=5, tracker="none", cpu=True)
IN_8_BITS = replace(LOOP, moments="8bit")


class Regression(nn.Module):
    """A network with the loss of drawing the sine, whose middle matrix is large enough for moments of 8 bits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))

    def forward(self, x):
        return (self.network(x) - torch.sin(3 * x)).square().mean()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def state(folder: Path) -> dict:
    return torch.load(folder / "state.pt", weights_only=True)


def values(moment: torch.Tensor) -> torch.Tensor:
    """Returns a copy of a moment's values."""
    return moment.dequantize() if hasattr(moment, "codes") else moment.clone()


def stop(batch):
    raise KeyboardInterrupt


def test_moments_of_8_bits_learn_as_those_of_32(tmp_path):
    long = replace(LOOP, steps=120)
    fit(Regression(), Points(), long, tmp_path / "float32")
    fit(Regression(), Points(), replace(long, moments="8bit"), tmp_path / "8bit")
    exact, coarse = losses(tmp_path / "float32"), losses(tmp_path / "8bit")
    assert exact[0] == coarse[0] and exact[5:] != coarse[5:]
    assert sum(coarse[-20:]) / 20 < 0.01 * coarse[0]
    moments = state(tmp_path / "8bit")["optimizer"]["state"]
    assert moments["network.2.weight"]["exp_avg"].codes.dtype == torch.uint8
    assert moments["network.2.bias"]["exp_avg_sq"].dtype == torch.float32
    assert "loop.moments" in state(tmp_path / "8bit")["options"]


def test_a_stopped_run_with_moments_of_8_bits_resumes_with_the_losses_it_would_have_had(tmp_path):
    whole = fit(Regression(), Points(), IN_8_BITS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(), Points(8, stop), IN_8_BITS, tmp_path / "stopped")
    resumed = fit(Regression(), Points(), IN_8_BITS, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_update_that_is_not_finite_changes_neither_weights_nor_moments():
    model, accelerator = Regression(), Accelerator(cpu=True)
    optimizer = accelerator.prepare_optimizer(adamw(list(model.parameters()), "8bit", lr=1e-2))
    train_step(accelerator, model, optimizer, [{"x": torch.ones(2, 1)}], 1.0)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moments = {parameter: (values(own["exp_avg"]), values(own["exp_avg_sq"])) for parameter, own in optimizer.optimizer.state.items()}
    train_step(accelerator, model, optimizer, [{"x": torch.full((2, 1), torch.nan)}], 1.0)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    for parameter, (first, second) in moments.items():
        own = optimizer.optimizer.state[parameter]
        assert own["step"] == 1 and torch.equal(values(own["exp_avg"]), first) and torch.equal(values(own["exp_avg_sq"]), second)
    train_step(accelerator, model, optimizer, [{"x": torch.ones(2, 1)}], 1.0)
    assert not all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_sharding_divides_no_block_of_a_moment():
    """A block of 256 numbers lies in one row; the smaller rest has float32."""
    shapes = {(1536, 1536): True, (8960, 1536): True, (512, 512, 3, 3, 3): True, (1536, 128): False, (64, 1536): False, (8960,): False}
    assert {shape: has_8_bits(torch.Size(shape)) for shape in shapes} == shapes


def test_bytes_of_moments_are_those_of_the_optimizer():
    model = Regression()
    optimizer = adamw(list(model.parameters()), "8bit", lr=1e-2)
    model(torch.ones(2, 1)).backward()
    optimizer.step()
    for parameter, own in optimizer.state.items():
        parts = [part for x in (own["exp_avg"], own["exp_avg_sq"]) for part in ([x.codes, x.scale, x.qmap] if hasattr(x, "codes") else [x])]
        assert sum(part.nbytes for part in parts) == moment_bytes(parameter, "8bit")
    assert moment_bytes(model.network[2].weight, "8bit") < 0.27 * moment_bytes(model.network[2].weight, "float32")


@pytest.mark.parametrize("is_imported", [True, False])
@pytest.mark.parametrize("begun, now", [("8bit", "float32"), ("float32", "8bit")])
def test_a_run_does_not_change_its_moments(tmp_path, begun, now, is_imported):
    fit(Regression(), Points(), replace(LOOP, steps=2, moments=begun), tmp_path)
    known = torch.serialization.get_safe_globals()
    try:
        if not is_imported and now == "float32":  # as in a process that never imports torchao
            torch.serialization.clear_safe_globals()
        with pytest.raises(ValueError, match=rf"state\.pt was begun with loop\.moments = '{begun}', now it is '{now}'.*another --out"):
            fit(Regression(), Points(), replace(LOOP, moments=now), tmp_path)
    finally:
        torch.serialization.add_safe_globals(known)


def test_a_state_of_before_has_moments_of_float32_and_an_average(tmp_path):
    fit(Regression(), Points(), replace(LOOP, steps=2), tmp_path)
    torch.save(state(tmp_path) | {"options": {}}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"was begun with loop\.moments = 'float32', now it is '8bit'"):
        fit(Regression(), Points(), IN_8_BITS, tmp_path)
    with pytest.raises(ValueError, match=r"was begun with loop\.ema > 0 = True, now it is False"):
        fit(Regression(), Points(), replace(LOOP, ema=0.0), tmp_path)
    fit(Regression(), Points(), LOOP, tmp_path)


def test_without_torchao_the_option_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "simplegvr_core.training.adamw_8bit", raising=False)
    with pytest.raises(ImportError, match=r"--loop\.moments 8bit needs torchao .*pip install torchao"):
        fit(Regression(), Points(), IN_8_BITS, tmp_path)


def test_without_an_average_the_result_is_the_last_weights(tmp_path):
    loop = replace(LOOP, ema=0.0)
    result = fit(Regression(), Points(), loop, tmp_path / "none")
    assert state(tmp_path / "none")["progress"]["average"] == []
    last = state(tmp_path / "none")["model"]
    assert all(torch.equal(result[name], last[name]) for name in last)
    fit(Regression(), Points(), LOOP, tmp_path / "average")
    assert losses(tmp_path / "none") == losses(tmp_path / "average")
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(), Points(8, stop), loop, tmp_path / "stopped")
    resumed = fit(Regression(), Points(), loop, tmp_path / "stopped")
    assert all(torch.equal(result[name], resumed[name]) for name in last)


def layer(rows: int = 7, columns: int = 6) -> nn.Linear:
    made = nn.Linear(columns, rows)
    nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.weight[0], made.weight[1] = 0.0, 1e4 * made.weight[1]  # a row of zeros, one of another magnitude
    return made


def test_a_matrix_in_float8_is_near_its_own_and_multiplies_as_its_twin():
    """A number is wrong by half of e4m3's last place, and a product no more than one of the same matrix in the same dtype."""
    full = layer()
    small = Float8Linear(full)
    matrix, own = small.matrix(torch.float64), full.weight.detach().double()
    largest = own.abs().amax(1, keepdim=True)
    assert ((matrix - own).abs() <= torch.maximum(own.abs() / 2**4, largest / 448 / 2**9)).all() and (matrix - own).any()
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    exact = F.linear(x.double(), matrix, full.bias.double())
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            twin = F.linear(x, matrix.float(), full.bias)
            result = small(x)
        assert result.dtype == twin.dtype == dtype
        assert (result - exact).abs().max() <= 2 * (twin - exact).abs().max() + 1e-12


def frozen_loss(frozen: str, base: SimpleGVRDiT | None = None) -> tuple[float, SimpleGVRDiT]:
    """Returns the loss of a LoRA beside a base, and the network."""
    dit = base or random_weights(SimpleGVRDiT(DIT, ATTENTION)).train()
    train = replace(PRESETS["smoke"], lora_rank=3, frozen=frozen, bf16=True)
    upsampler = make_upsampler(UpsamplerConfig(width=8))
    for parameter in upsampler.parameters():
        nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    model = train.objective(*train.prepared(upsampler, dit, torch.Generator().manual_seed(0)), None)
    z = torch.randn(2, 16, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    batch = {"z_lr": z[..., ::2, ::2].clone(), "z_hr": z, "context": torch.zeros(2, 1, 4096)}
    return model(**batch, **FlowNoise((0.3, 0.6), None)(z, Draws(0, 0, range(2), 2))).item(), dit


def test_the_loss_beside_a_base_in_float8_is_that_of_its_rounded_matrices():
    loss, dit = frozen_loss("float8")
    bfloat16, _ = frozen_loss("bfloat16")
    assert loss != bfloat16 and loss == pytest.approx(bfloat16, rel=2**-4)
    twin = random_weights(SimpleGVRDiT(DIT, ATTENTION)).train()
    rounded = {name.replace(".base_layer", ""): small for name, small in dit.named_modules() if isinstance(small, Float8Linear)}
    assert len(rounded) == DIT.num_layers * 10
    for name, small in rounded.items():
        twin.get_submodule(name).weight.data = small.matrix(torch.float32)
    assert frozen_loss("bfloat16", twin)[0] == loss


def test_the_matrices_of_blocks_take_half_the_bytes_of_bfloat16():
    found = {}
    for frozen in ("float32", "bfloat16", "float8"):
        _, dit = frozen_loss(frozen)
        layers = [module for module in dit.blocks.modules() if hasattr(module, "base_layer")]
        found[frozen] = sum(weight.nbytes for each in layers for weight in each.base_layer.parameters())
        outside = {parameter.dtype for name, parameter in dit.time_embedding.named_parameters()}
        assert outside == {torch.float32 if frozen == "float32" else torch.bfloat16}
    assert found["bfloat16"] == found["float32"] / 2
    assert found["float8"] == pytest.approx(found["bfloat16"] / 2, rel=0.03)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Train:
    """A LoRA's run on pairs of the bundled clips, beside a network with random weights."""
    folder = tmp_path_factory.mktemp("lora")
    smoke = PRESETS["smoke"]
    BuildPairs(REPO / "assets", smoke.vae, folder / "pairs", "area", num_frames=9, spacing=9, scales=(2,)).run()
    dit, upsampler = random_weights(SimpleGVRDiT(DIT, ATTENTION)), make_upsampler(UpsamplerConfig(width=8, latents="tiny_vae"))
    upsampler.init_weights(torch.Generator().manual_seed(0))
    configs = {"model": DIT, "attention": ATTENTION, "sampling": smoke.sampling}
    checkpoint.save(folder / "dit.safetensors", "dit", dit.state_dict(), **configs)
    checkpoint.save(folder / "upsampler.safetensors", "upsampler", upsampler.state_dict(), model=upsampler.config)
    files = {"init_dit": folder / "dit.safetensors", "init_upsampler": folder / "upsampler.safetensors"}
    loop = replace(LOOP, steps=4, save_every=2, ema=0.0)
    return replace(smoke, pairs=(folder / "pairs",), out=folder / "run", lora_rank=3, frozen="float8", bf16=True, loop=loop, **files)


def test_a_lora_beside_float8_resumes_shows_previews_and_applies_to_the_ordinary_base(base, tmp_path):
    path = Path(base.run()["lora"])
    assert {each.name for each in base.out.glob("preview*")} == {"preview_000002.mp4", "preview_000004.mp4"}
    half = replace(base, out=tmp_path / "half", loop=replace(base.loop, steps=2, schedule="constant"))
    whole = replace(half, out=tmp_path / "whole", loop=replace(half.loop, steps=4))
    half.run()
    whole.run()
    replace(half, loop=whole.loop).run()
    assert losses(half.out) == losses(whole.out)
    trained = checkpoint.read_config(path, "lora")["trained"]
    assert (trained["optimizer"]["moments"], trained["optimizer"]["ema"]) == ("float32", 0.0)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    plain, changed = load_dit(base.init_dit)[0], load_dit(base.init_dit)[0]
    add_lora_file(changed, path)
    inputs = torch.randn(1, 32, 2, 6, 8), torch.tensor([500.0]), torch.zeros(1, 1, 4096)
    with torch.no_grad():
        assert 0 < (changed(*inputs) - plain(*inputs)).abs().max() < 1
    with pytest.raises(ValueError, match="was begun with frozen = 'float8', now it is 'bfloat16'"):
        replace(base, frozen="bfloat16").run()


def test_moments_of_8_bits_are_refused_where_they_save_nothing():
    lora = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((32, 1536), (1536, 32))]
    with pytest.raises(ValueError, match=r"--loop.moments is 8bit, but no trained parameter .* leave the option out, as for a LoRA"):
        adamw(lora, "8bit", lr=1e-3)
