"""Files and prompts that no honest program writes: a named error in bounded memory, and nothing outside the folders."""

import asyncio
import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from client import WorkflowError, run_workflow
from conftest import save_dit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_bad_videos import encode
from test_pairs import footage

from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.dit import load_dit
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.networks.upsampler import load_upsampler
from simplegvr_core.sampling.latent_file import LatentFile, undamaged, write_latent
from simplegvr_core.video.decode import read_progress
from simplegvr_core.video.read import VideoError, inspect_video, read_frames

LARGEST = 256 * 2**20  # bytes of Python's own memory that reading a small file may take
FUZZ = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
LONG = settings(FUZZ, max_examples=1500)


# Prompts


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


SIZES = {"size": "scale", "size.scale": 2.0}
SETTINGS = {"settings": "custom", "settings.steps": 1, "settings.cfg": 1.0, "settings.noise_augmentation": 0.4, "settings.denoise": 0.5}
CHAIN = {
    "gvr": node("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default"),
    "up": node("SimpleGVRLoadUpsampler", model_name="upsampler_test.safetensors"),
    "vae": node("SimpleGVRLoadTinyVAE", vae_name="gvr_tiny_vae.safetensors"),
    "latent": node("EmptyHunyuanLatentVideo", width=64, height=48, length=5, batch_size=1),
    "plan": node("SimpleGVRPlan", model=["gvr", 0], latent=["latent", 0], memory="free", trial=False, **SIZES, **SETTINGS),
    "upscale": node("SimpleGVRLatentUpscale", upsampler=["up", 0], latent=["latent", 0], **SIZES),
    "sparse": node("SimpleGVRSparseAttention", model=["gvr", 0], preset="paper"),
    "sampler": node(
        "SimpleGVRSampler", model=["sparse", 0], upsampler=["up", 0], latent=["latent", 0], seed=1, noise_seed=2, tiling="auto",
        color_match=1.0, resume=False, **SIZES, **SETTINGS,
    ),
    "save": node(
        "SimpleGVRDecodeSave", vae=["vae", 0], latent=["sampler", 0], fps=24.0, filename_prefix="video/hostile", crf=16.0, resume=False,
        trim="none",
    ),
    "show": node("PreviewAny", source=["upscale", 0]),
}  # fmt: skip


def changed(name: str, **inputs) -> dict:
    """Returns the chain with inputs of one node replaced; None takes one away."""
    own = {key: value for key, value in {**CHAIN[name]["inputs"], **inputs}.items() if value is not None}
    return {**CHAIN, name: {**CHAIN[name], "inputs": own}}


def run(server, prompt: dict) -> dict:
    return asyncio.run(run_workflow(server.address, prompt))


def test_the_chain_itself_runs(server):
    run(server, CHAIN)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("sampler", {"size": "scal"}, r"SimpleGVR Sampler: size is 'scal', wanted one of upsampler scale, scale,"),
        ("upscale", {"size": "scal"}, r"SimpleGVR Latent Upscale: size is missing, or none of its options, wanted one of upsampler scale,"),
        ("plan", {"size": 3}, "SimpleGVR Plan: size is missing, or none of its options"),
        ("plan", {"memory": "fre"}, "SimpleGVR Plan: memory is missing, or none of its options, wanted one of free, custom"),
        ("sampler", {"settings": "best"}, r"SimpleGVR Sampler: settings is 'best', wanted one of recommended, custom"),
        ("sampler", {"tiling": "whol"}, r"SimpleGVR Sampler: tiling is 'whol', wanted one of auto, whole, custom"),
        ("save", {"trim": "nothing"}, "SimpleGVR Decode and Save: trim is missing, or none of its options, wanted one of none, custom"),
        ("sparse", {"preset": "fast"}, "SimpleGVR Sparse Attention: preset is missing, or none of its options"),
        ("sampler", {"size": None}, "SimpleGVR Sampler: size is missing|required_input_missing"),
    ],
)  # fmt: skip
def test_a_misspelt_choice_is_named(server, name, inputs, message):
    with pytest.raises(WorkflowError, match=f"(?s){message}") as raised:
        run(server, changed(name, **inputs))
    assert "positional argument" not in str(raised.value)


def test_a_latent_without_frames_is_named(server):
    prompt = {**CHAIN, "trimmed": node("TrimVideoLatent", samples=["latent", 0], trim_amount=2)}
    for name, label in (("sampler", "SimpleGVR Sampler"), ("upscale", "SimpleGVR Latent Upscale"), ("save", "SimpleGVR Decode and Save")):
        emptied = {**prompt, name: {**CHAIN[name], "inputs": {**CHAIN[name]["inputs"], "latent": ["trimmed", 0]}}}
        others = {key: emptied[key] for key in emptied if key in ("gvr", "up", "vae", "latent", "sparse", "trimmed", name)}
        if name == "upscale":
            others["show"] = emptied["show"]
        if name == "sampler":
            others["show"] = node("PreviewAny", source=["sampler", 1])
        with pytest.raises(WorkflowError, match=rf"{label}: the latent has shape \(1, 16, 0, .*wanted at least one frame"):
            run(server, others)


WRONG = [
    None,
    "",
    "x",
    "1e999",
    -1,
    0,
    2**70,
    1.5,
    True,
    [],
    {},
    [["latent", 0]],
    {"a": 1},
    "../../x",
    "\u0000",
    "<script>alert(1)</script>",
]


@pytest.mark.slow
def test_wrong_types_in_every_widget_are_answered_by_name(server):
    """Refused by the server or the node, or taken for what it means: no raw error of Python or PyTorch."""
    raw = ("TypeError", "positional argument", "KeyError", "AttributeError", "not implemented", "NoneType", "unexpected keyword")
    before = {path for path in server.base.rglob("*") if path.parts[-2:] != ("server.log",)}
    tried = 0
    for name in ("plan", "sampler", "save", "upscale", "sparse"):
        for widget, value in CHAIN[name]["inputs"].items():
            if isinstance(value, list):
                continue
            for wrong in WRONG:
                if wrong is not None:
                    tried += 1
                    try:
                        run(server, changed(name, **{widget: wrong}))
                    except WorkflowError as error:
                        assert not any(word in str(error) for word in raw), (name, widget, wrong, str(error))
    assert tried > 300
    new = set(server.base.rglob("*")) - before
    outside = [path for path in new if not {"output", "temp"} & set(path.relative_to(server.base).parts)]
    assert not outside


# Checkpoints


def with_config(path: Path, config: dict) -> Path:
    save_file({"x": torch.zeros(1)}, path, {checkpoint.METADATA_KEY: json.dumps(config)})
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return save_dit(tmp_path_factory.mktemp("small") / "gvr.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 10**9},
        {"dim": 10**15},
        {"num_heads": 0},
        {"num_heads": 7},
        {"dim": -4},
        {"ffn_dim": "x"},
        {"dim": None},
        {"dim": 1.5},
    ],
)
def test_absurd_sizes_in_a_checkpoint_are_named(small, tmp_path, changes):
    config = checkpoint.read_config(small, "dit")
    path = tmp_path / "absurd.safetensors"
    save_file(load_file(small), path, {checkpoint.METADATA_KEY: json.dumps({**config, "model": {**config["model"], **changes}})})
    with limited_memory(), pytest.raises(ValueError, match=r"absurd\.safetensors"):
        load_dit(path)


class limited_memory:
    """Fails when Python's own memory grows by more than LARGEST."""

    def __enter__(self):
        tracemalloc.start()

    def __exit__(self, *error):
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < LARGEST


KEYS = st.sampled_from(["kind", "model", "attention", "sampling", "dim"]) | st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def damaged(draw, data: bytes) -> bytes:
    """Returns a file's bytes cut, extended or with some of them changed."""
    data = bytearray(data)
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=30)):
        data[place] = value
    head = draw(st.lists(st.tuples(st.integers(0, min(300, len(data) - 1)), st.integers(0, 255)), max_size=6))
    for place, value in head:
        data[place] = value
    return bytes(data[: draw(st.sampled_from([len(data), len(data) // 2, 9, 8, 1, 0]))]) + draw(st.sampled_from([b"", b"\x00" * 64]))


def readers_of_checkpoints(path: Path) -> None:
    for load in (load_dit, load_upsampler, load_tiny_vae):
        try:
            load(path)
        except (ValueError, FileNotFoundError, OSError) as error:
            assert path.name in str(error), repr(error)


def fuzz_configurations(tmp_path, small, config) -> None:
    whole = checkpoint.read_config(small, "dit")
    path = tmp_path / "fuzzed.safetensors"
    for section in ("model", "attention", "sampling"):
        with_config(path, {**whole, section: config})
        readers_of_checkpoints(path)
    with_config(path, config)
    readers_of_checkpoints(path)


def fuzz_bytes(tmp_path, small, data) -> None:
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(damaged(data.draw, small.read_bytes()[:5000]))
    readers_of_checkpoints(path)


@pytest.fixture(scope="module")
def latent_bytes(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("latent") / "z.safetensors"
    with write_latent(path, (1, 16, 2, 3, 4), {"step": "1"}) as append:
        append(torch.randn(1, 16, 2, 3, 4))
    return path.read_bytes()


def fuzz_working_files(tmp_path, latent_bytes, data) -> None:
    """A damaged file is dropped with a note; a file that is taken is whole."""
    path, notes = tmp_path / "z.safetensors", []
    path.write_bytes(damaged(data.draw, latent_bytes))
    latent = undamaged(path, notes.append)
    if latent is None:
        assert len(notes) == 1
        assert not path.exists()
    else:
        assert isinstance(latent, LatentFile)
        assert latent[:].shape == latent.shape
    path.write_bytes(damaged(data.draw, latent_bytes))
    read_progress(path, notes.append)


@pytest.fixture(scope="module")
def video_bytes(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    encode(path, footage(6), "libx264", "yuv420p")
    return path.read_bytes()


def fuzz_videos(tmp_path, video_bytes, data) -> None:
    path = tmp_path / "fuzzed.mp4"
    path.write_bytes(damaged(data.draw, video_bytes))
    for read in (inspect_video, lambda path: list(read_frames(path))):
        try:
            read(path)
        except VideoError as error:
            assert path.name in str(error)


@FUZZ
@given(config=JSON)
def test_configurations(tmp_path, small, config):
    fuzz_configurations(tmp_path, small, config)


@FUZZ
@given(data=st.data())
def test_bytes_of_checkpoints(tmp_path, small, data):
    fuzz_bytes(tmp_path, small, data)


@FUZZ
@given(data=st.data())
def test_bytes_of_working_files(tmp_path, latent_bytes, data):
    fuzz_working_files(tmp_path, latent_bytes, data)


@FUZZ
@given(data=st.data())
def test_bytes_of_videos(tmp_path, video_bytes, data):
    fuzz_videos(tmp_path, video_bytes, data)


@pytest.mark.slow
@LONG
@given(config=JSON)
def test_many_configurations(tmp_path, small, config):
    fuzz_configurations(tmp_path, small, config)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_many_bytes_of_checkpoints(tmp_path, small, data):
    fuzz_bytes(tmp_path, small, data)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_many_bytes_of_working_files(tmp_path, latent_bytes, data):
    fuzz_working_files(tmp_path, latent_bytes, data)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_many_bytes_of_videos(tmp_path, video_bytes, data):
    fuzz_videos(tmp_path, video_bytes, data)
