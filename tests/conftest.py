"""Fixtures: ComfyUI in process with the pack loaded, a real ComfyUI server, tiny real checkpoints."""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # our kernels run on the CPU, slowly; read when Triton is first imported

REPO = Path(__file__).resolve().parents[1]
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != REPO]
os.environ["DO_NOT_TRACK"] = "1"  # comfy-cli's
sys.path += map(str, (REPO, REPO / "scripts", REPO / "tools", REPO / "tests"))

import comfyui as setup  # noqa: E402

from simplegvr_core.networks import checkpoint  # noqa: E402
from simplegvr_core.networks.attention import AttentionConfig  # noqa: E402
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT  # noqa: E402
from simplegvr_core.networks.upsampler import LatentUpsampler, UpsamplerConfig  # noqa: E402
from simplegvr_core.sampling.super_resolve import SamplingConfig  # noqa: E402

DIT = DiTConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=3)
ATTENTION = AttentionConfig(window=(1, 4, 3), top_k=1, unit=5)
UPSAMPLER = UpsamplerConfig(width=16)
LATENT = (1, 16, 3, 5, 7)


def random_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Returns model with fresh weights, none of them zero: an untrained layer that gives 0 would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.eval()


def launcher(processes: int) -> list[str]:
    """Returns the start of a command line of so many processes, on a free port."""
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]


def save_dit(path: Path, config: DiTConfig = DIT, attention: AttentionConfig = ATTENTION) -> Path:
    model = random_weights(SimpleGVRDiT(config, attention))
    checkpoint.save(path, "dit", model.state_dict(), model=config, attention=attention, sampling=SamplingConfig(shift=3.0))
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """A models folder with a tiny GVR, a tiny 16-channel Wan and a tiny upsampler, random but real."""
    models = tmp_path_factory.mktemp("models")
    save_dit(models / "diffusion_models" / "gvr_test.safetensors")
    save_dit(models / "diffusion_models" / "gvr_large_frames.safetensors", replace(DIT, num_layers=1), AttentionConfig())
    save_dit(models / "diffusion_models" / "wan_test.safetensors", DiTConfig(in_dim=16, dim=128, ffn_dim=160, num_heads=1, num_layers=3))
    upsampler = random_weights(LatentUpsampler(UPSAMPLER))
    path = models / "latent_upscale_models" / "upsampler_test.safetensors"
    checkpoint.save(path, "upsampler", upsampler.state_dict(), model=UPSAMPLER)
    return models


@pytest.fixture(scope="session")
def comfy(checkpoints, tmp_path_factory):
    """ComfyUI in process, on the CPU, with the pack loaded: `comfy.run(node_id, **inputs)` executes one node."""
    path = setup.find_comfyui(setup.HOME)
    assert path is not None, "no ComfyUI: run the tests with python3 scripts/test.py"
    sys.path.insert(0, str(path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
    import folder_paths
    import utils.extra_config  # noqa: F401 - as main.py does: an older ComfyUI's nodes.py puts another utils first

    import nodes

    base = tmp_path_factory.mktemp("base")
    setup.link_pack(base)
    for folder in checkpoints.iterdir():
        folder_paths.add_model_folder_path(folder.name, str(folder))
    link = base / "custom_nodes" / setup.PACK_NAME
    assert asyncio.run(nodes.load_custom_node(str(link))), "the pack did not load"
    for name in ("custom_sampler", "model_advanced", "context_windows"):
        asyncio.run(nodes.load_custom_node(str(path / "comfy_extras" / f"nodes_{name}.py"), module_parent="comfy_extras"))

    def run(node_id: str, **inputs):
        node = nodes.NODE_CLASS_MAPPINGS[node_id]
        with torch.inference_mode():
            if hasattr(node, "define_schema"):
                return node.PREPARE_CLASS_CLONE(None).execute(**inputs).args
            return getattr(node(), node.FUNCTION)(**inputs)

    return SimpleNamespace(run=run, nodes=nodes.NODE_CLASS_MAPPINGS, pack=sys.modules[str(link)])


@pytest.fixture(scope="session")
def server(checkpoints, tmp_path_factory):
    """The address of a real ComfyUI server with the pack and the test checkpoints."""
    base = tmp_path_factory.mktemp("server")
    (base / "models").rmdir() if (base / "models").exists() else None
    setup.link_folder(base / "models", checkpoints)
    with setup.server(base) as (address, _):
        yield SimpleNamespace(address=address, base=base)


@pytest.fixture(scope="session")
def stocked(server):
    """The server, with gvr_tiny under the names of the large files that workflows ask for, and a short demo.mp4."""
    from stand_ins import place_stand_ins

    from simplegvr_core.video.read import read_video
    from simplegvr_core.video.write import write_video

    place_stand_ins(server.base / "models")
    images, rate = read_video(REPO / "assets" / "demo.mp4", 9)
    write_video(server.base / "input" / "demo.mp4", images[:, 26:82, 48:144], rate)
    return server


@pytest.fixture(scope="module")
def page(stocked):
    """ComfyUI's own front end in a browser, of that server; closed after each file, as its event loop lets no other run meanwhile."""
    from browser import comfyui_page

    with comfyui_page(stocked.address) as page:
        yield page


@pytest.fixture(scope="module")
def one_thread():
    """Loops over tiny tensors: a second thread only waits for the first, for long where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def latent(shape=LATENT, seed=0) -> dict:
    return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def scale(factor: float) -> dict:
    return {"size": "scale", "scale": factor}


@pytest.fixture(scope="module")
def upsampler(comfy):
    return comfy.run("SimpleGVRLoadUpsampler", model_name="upsampler_test.safetensors")[0]


@pytest.fixture(scope="module")
def model(comfy):
    return comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")[0]


@pytest.fixture(scope="module")
def wan(comfy):
    return comfy.run("UNETLoader", unet_name="wan_test.safetensors", weight_dtype="default")[0]


@pytest.fixture
def sample(comfy, model, upsampler):
    """Runs SimpleGVR Sampler with inputs or settings changed; settings="recommended" for the checkpoint's."""

    def run(**changes):
        if changes.get("settings") == "recommended":
            changes["settings"] = {"settings": "recommended"}
        settings = {"settings": "custom", "steps": 2, "cfg": 1.0, "noise_augmentation": 0.4, "denoise": 1.0}
        settings |= {key: changes.pop(key) for key in settings.keys() & changes.keys()}
        inputs = dict(model=model, upsampler=upsampler, latent=latent(), size=scale(2), seed=1, noise_seed=2, settings=settings)
        out, report = comfy.run("SimpleGVRSampler", **{**inputs, **changes})
        return out["samples"], report

    return run
