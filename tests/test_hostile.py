"""Files and prompts that no honest program writes: a named error in bounded memory, and nothing outside the folders."""

import asyncio
import json
import tracemalloc
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from client import WorkflowError, run_workflow
from conftest import REPO, save_dit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from t2v_workflow import UnusableWorkflowError, base_workflow
from test_bad_videos import encode
from test_pairs import footage

from simplegvr_core.evaluation.evaluate import Evaluate
from simplegvr_core.evaluation.finished import find_finished
from simplegvr_core.evaluation.prompts import read_prompts
from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.convert import Convert
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT, load_dit
from simplegvr_core.networks.foreign import read_any
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.networks.upsampler import load_upsampler
from simplegvr_core.sampling.comfyui_latent import read_latent, read_latent_shape
from simplegvr_core.sampling.context import read_context
from simplegvr_core.sampling.latent_file import LatentFile, undamaged, write_latent
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.sampling.timesteps import load_curve
from simplegvr_core.tiling import Box
from simplegvr_core.video.decode import StatefulTile, read_progress, save_progress
from simplegvr_core.video.read import VideoError, inspect_video, read_frames
from simplegvr_core.video.write import write_video

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


# Workflows of other people


@pytest.mark.parametrize(
    "damage",
    [
        lambda api: list(api.values()),
        lambda api: api | {"4": {"class_type": "EmptyHunyuanLatentVideo"}},
        lambda api: api | {"4": {"class_type": 3, "inputs": {}}},
        lambda api: api | {"4": "x"},
        lambda api: {id: node for id, node in api.items() if id != "4"},
        lambda api: api | {"8": {**api["8"], "inputs": {**api["8"]["inputs"], "latent": []}}},
        lambda api: api | {"8": {**api["8"], "inputs": {**api["8"]["inputs"], "latent": "x"}}},
    ],
)
def test_a_workflow_of_wrong_types_is_named(damage):
    workflow = json.loads((REPO / "workflows" / "api" / "wiring_test_t2v.json").read_text())
    assert base_workflow(workflow, "x")
    with pytest.raises(UnusableWorkflowError, match=r"is not in API format|which is not there|has no latent"):
        base_workflow(damage(workflow), "x")


# Latents, text features and other files


def with_tensor(path: Path, name: str, tensor: torch.Tensor) -> Path:
    save_file({name: tensor}, path)
    return path


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1, 16, 0, 4, 4), "contains no latent of Wan 2.1"),
        (torch.zeros(0, 16, 1, 4, 4), "contains no latent of Wan 2.1"),
        (torch.full((1, 16, 1, 4, 4), torch.nan), "has a latent with NaN, infinite or complex values"),
        (torch.zeros(1, 16, 1, 4, 4, dtype=torch.complex64), "has a latent with NaN, infinite or complex values"),
    ],
)
def test_a_latent_that_is_none_is_named(tmp_path, tensor, message):
    with pytest.raises(ValueError, match=rf"a\.latent {message}"):
        read_latent(with_tensor(tmp_path / "a.latent", "latent_tensor", tensor))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_a_latent_of_any_real_dtype_is_taken(tmp_path, dtype):
    path = with_tensor(tmp_path / "a.latent", "latent_tensor", torch.ones(2, 16, 3, 4, 5).to(dtype))
    assert read_latent(path).shape == read_latent_shape(path) == (1, 16, 3, 4, 5)


def test_a_latent_that_claims_terabytes_is_named(tmp_path):
    shape, path = [1, 16, 10**6, 10**4, 10**4], tmp_path / "a.latent"
    header = json.dumps({"latent_tensor": {"dtype": "F32", "shape": shape, "data_offsets": [0, 64 * 10**14]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    for read in (read_latent, read_latent_shape):
        with limited_memory(), pytest.raises(ValueError, match=r"a\.latent is not a safetensors file that can be read"):
            read(path)


def test_text_features_without_tokens_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.safetensors has a context of shape \(0, 7\), wanted \(tokens, 7\)"):
        read_context(with_tensor(tmp_path / "a.safetensors", "context", torch.zeros(0, 7)), 7)


@pytest.mark.parametrize("text", ["{", 10**5 * "[", "7", "\x00"])
def test_a_lora_whose_settings_are_no_json_is_named(tmp_path, text):
    save_file({"blocks.0.q.lora_A.weight": torch.zeros(2, 3)}, tmp_path / "lora.safetensors", {checkpoint.METADATA_KEY: text})
    with pytest.raises(ValueError, match=r"lora\.safetensors has a (damaged|.* without a kind).*: get the file again"):
        checkpoint.read_config(tmp_path / "lora.safetensors", "lora")


@pytest.mark.parametrize("text", ['{"clips": ' + 10**5 * "[", '{"clips": {"a": []}}', "[]", "\x00"])
def test_a_manifest_that_is_none_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is no manifest"):
        read_prompts(tmp_path, ["a"])


def test_progress_with_fewer_tiles_than_states_is_not_used(tmp_path):
    save_progress(tmp_path, ["1"], [StatefulTile(Box((0, 0, 0), (1, 4, 4)), {"x": torch.zeros(1, 4, 4)})])
    (path,) = tmp_path.glob("progress*")
    assert read_progress(path, print) is not None
    for boxes in ("[]", "7", "[[1, 2]]", 10**5 * "["):
        with safe_open(path, "pt") as file:
            metadata = {**file.metadata(), "boxes": boxes}
        save_file(load_file(path), path, metadata)
        notes = []
        assert read_progress(path, notes.append) is None
        assert notes == [f"{path.name} of an earlier run was damaged and is not used."]


# Names


NAMES = ["<img src=x onerror=alert(1)>", "a|b & `c`", "$(touch pwned)", "-rf", "x.y.z", "{{7*7}}", "CON", "\u202emp4.exe"]


def test_names_and_prompts_are_text_in_the_report_and_files_stay_in_the_folder(tmp_path):
    """With a finished video of another system that is longer than its clip."""
    for name in NAMES:
        for folder, frames in (("clips", 5), ("other", 5 if name != "x.y.z" else 11)):
            write_video(tmp_path / folder / f"{name}.mp4", footage(frames, 40, 56), Fraction(24))
    prompts = {name: {"prompt": f"<script>alert(1)</script> {name}"} for name in NAMES}
    (tmp_path / "manifest.json").write_text(json.dumps({"clips": prompts}))
    chosen = {"scale": 1, "metrics": ("psnr",), "num_frames": 5, "device": "cpu"}
    evaluate = Evaluate(tmp_path / "clips", tmp_path / "out", ("bicubic",), videos=(f"Other 1.0={tmp_path / 'other'}",), **chosen)
    assert sorted(evaluate.run()["clips"]) == sorted(NAMES)
    html, markdown = ((tmp_path / "out" / name).read_text() for name in ("report.html", "results.md"))
    for text in (html, markdown):
        assert "<img src=x" not in text
        assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in html
    assert "| a\\|b &amp; `c` |" in markdown
    assert {path.name for path in tmp_path.iterdir()} == {"clips", "other", "out", "manifest.json"}


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\\b", "..", ".x", "CON", "com1.x", "<b>", "x\n", "C:x", "-"])
def test_a_system_is_not_named_like_a_path(tmp_path, name):
    with pytest.raises(ValueError, match=r"--videos has the name .*, which files get: wanted letters, digits"):
        find_finished([f"{name}={tmp_path}"], ["a"])


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


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("attention", {"window": [1, float("inf"), 2]}),
        ("attention", {"window": [1, 12]}),
        ("attention", {"window": "1x2"}),
        ("sampling", {"shift": 0}),
        ("sampling", {"steps": 0}),
        ("sampling", {"denoise": 1.5}),
        ("sampling", {"noise_augmentation": 2}),
    ],
)
def test_absurd_settings_in_a_checkpoint_are_named(small, tmp_path, section, changes):
    config = checkpoint.read_config(small, "dit")
    path = tmp_path / "absurd.safetensors"
    described = {**config, section: {**config.get(section, {}), **changes}}
    save_file(load_file(small), path, {checkpoint.METADATA_KEY: json.dumps(described)})
    with pytest.raises(ValueError, match=rf"absurd\.safetensors has .*{section}"):
        load_dit(path)
        checkpoint.parse_config(SamplingConfig, described, "sampling", path)


def test_a_small_file_whose_tensors_claim_gigabytes_is_named(tmp_path):
    """A pickled tensor may repeat one stored value."""
    dit = DiTConfig(dim=128 * 512, ffn_dim=4 * 128 * 512, num_heads=512, num_layers=2)
    names = SimpleGVRDiT(dit, AttentionConfig(), device="meta").state_dict()
    torch.save({name: torch.zeros(1).expand(tensor.shape) for name, tensor in names.items()}, tmp_path / "huge.pth")
    for read in (load_dit, lambda path: Convert(path, tmp_path / "out.safetensors").run()):
        with limited_memory(), pytest.raises(ValueError, match=r"huge\.pth has 0\.02.* MB and its tensors claim 6.* GB: it is damaged"):
            read(tmp_path / "huge.pth")


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


@pytest.fixture(scope="module")
def pickled_bytes(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("pickled") / "a.pth"
    torch.save({"model": {"blocks.0.self_attn.q.weight": torch.zeros(4, 4), "x": torch.zeros(1).expand(9)}}, path)
    return path.read_bytes()


def fuzz_other_files(tmp_path, latent_bytes, pickled_bytes, data) -> None:
    """Latents, text features, pickled checkpoints, manifests and curves that people hand around."""
    content = damaged(
        data.draw, data.draw(st.sampled_from([latent_bytes, pickled_bytes, b'{"clips": {"a": {"prompt": "x"}}, "sigma": [1]}']))
    )
    for name, read in {
        "a.latent": read_latent,
        "b.safetensors": lambda path: read_context(path, 4),
        "c.pth": lambda path: read_any(path, "dit"),
        "manifest.json": lambda path: read_prompts(path.parent, ["a"]),
        "curve.json": load_curve,
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        try:
            read(path)
        except ValueError as error:
            assert path.name in str(error), repr(error)


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


@FUZZ
@given(data=st.data())
def test_bytes_of_other_files(tmp_path, latent_bytes, pickled_bytes, data):
    fuzz_other_files(tmp_path, latent_bytes, pickled_bytes, data)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_many_bytes_of_other_files(tmp_path, latent_bytes, pickled_bytes, data):
    fuzz_other_files(tmp_path, latent_bytes, pickled_bytes, data)


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
