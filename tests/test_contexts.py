"""Text features of captions: umT5 by transformers, as ComfyUI's; shards with checksums; captions from texts, tables and a command."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from conftest import REPO
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from simplegvr_core.evaluation.evaluate import Evaluate
from simplegvr_core.files import read_json
from simplegvr_core.sampling import context
from simplegvr_core.sampling.context import Contexts
from simplegvr_core.training.batches import Crop, PairSampler
from simplegvr_core.training.contexts import BuildContexts
from simplegvr_core.training.draws import Draws
from simplegvr_core.video.write import write_video

WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "dog", "runs", "sleeps", "in", "the", "snow", "slowly"]
UMT5 = UMT5Config(vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu")
CAPTIONS = {"a": "a cat runs", "b": "a dog sleeps slowly in the snow", "below/c": "snow", "d.v2": "the dog runs"}


def save_umt5(folder: Path, d_model: int) -> None:
    """Writes a tiny umT5 with random weights and a tokenizer of twelve words, in the subfolders that diffusers has for Wan."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    UMT5EncoderModel(UMT5Config(**{**UMT5.to_dict(), "d_model": d_model})).save_pretrained(folder / "text_encoder")


@pytest.fixture(scope="module")
def umt5(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("umt5")
    save_umt5(folder, UMT5.d_model)
    return folder


@pytest.fixture
def build(tmp_path, umt5) -> BuildContexts:
    """A command whose four videos have texts beside them."""
    for name, caption in CAPTIONS.items():
        write_video(tmp_path / "videos" / f"{name}.mp4", torch.zeros(1, 16, 16, 3, dtype=torch.uint8), Fraction(24))
        (tmp_path / "videos" / f"{name}.txt").write_text(f"{caption}\n")
    options = {"text_encoder": str(umt5), "negative": "the cat sleeps", "shard_contexts": 3, "device": "cpu"}
    return BuildContexts(tmp_path / "out", tmp_path / "videos", **options)


def test_features_are_those_of_comfyuis_umt5(build, umt5, comfy):
    import comfy.ops
    from comfy.text_encoders.t5 import T5

    assert build.run() == {"out": str(build.out), "contexts": 4, "captioned": 0, "tokens": 8, "cut": 0}
    config = {key: getattr(UMT5, key) for key in ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size", "is_gated_act")}
    config |= {"model_type": "umt5", "dense_act_fn": "gelu_pytorch_tanh"}
    theirs = T5(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    weights = load_file(umt5 / "text_encoder" / "model.safetensors")
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not missing and set(unexpected) <= {"encoder.embed_tokens.weight"}
    contexts = Contexts(build.out)
    for name, caption in CAPTIONS.items():
        ids = torch.tensor([[WORDS.index(word) for word in caption.split()] + [1]])
        features, _ = theirs(ids, torch.ones_like(ids))
        torch.testing.assert_close(contexts.read(name, 24), features[0].detach(), atol=2e-3, rtol=2e-3)
    assert load_file(build.out / "negative.safetensors")["context"].shape == (4, 24)


def test_features_do_not_depend_on_the_captions_beside_them(build, tmp_path):
    build.run()
    one = replace(build, out=tmp_path / "one", batch=1)
    one.run()
    for name in CAPTIONS:
        torch.testing.assert_close(Contexts(one.out).read(name, 24), Contexts(build.out).read(name, 24), atol=2e-3, rtol=2e-3)


def test_a_long_caption_is_cut_as_wan_cuts_it(build):
    (build.videos / "a.txt").write_text("snow " * 600)
    summary = build.run()
    assert (summary["tokens"], summary["cut"]) == (512, 1)
    assert Contexts(build.out).read("a", 24).shape == (512, 24)


@pytest.mark.parametrize("name", ["table.csv", "table.json"])
def test_a_table_takes_the_place_of_the_texts(build, tmp_path, name):
    table = tmp_path / name
    if name.endswith("json"):
        table.write_text(json.dumps({"a.mp4": "the dog", "below/c": "a  cat\nruns"}))
    else:
        table.write_text('video,caption\na.mp4,the dog\nbelow/c,"a  cat\nruns"\n')
    for path in build.videos.rglob("*.txt"):
        if path.stem in ("a", "c"):
            path.unlink()
    replace(build, captions=table).run()
    captions = {entry["name"]: entry["caption"] for entry in Contexts(build.out).entries.values()}
    assert captions == CAPTIONS | {"a": "the dog", "below/c": "a cat runs"}
    alone = replace(build, videos=None, captions=table, out=tmp_path / "alone")
    assert alone.run()["contexts"] == 2


def test_a_command_captions_the_videos_that_have_none(build, tmp_path):
    (build.videos / "b.txt").unlink()
    script = tmp_path / "caption.py"
    script.write_text("import sys; from pathlib import Path; print('a', 'dog' * Path(sys.argv[1]).is_file(), 'runs')")
    told = replace(build, captioner=f"{sys.executable} {script}")
    with pytest.raises(ValueError, match=r"1 videos of .* have no caption, such as b\.mp4: write a text .* --captioner"):
        build.run()
    assert told.run()["captioned"] == 1
    assert Contexts(build.out).entries["b"]["caption"] == "a dog runs"
    script.write_text("raise SystemExit('no')")
    (build.videos / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"gave no caption of .*a\.mp4 \(exit status 1: no\): mend the command"):
        replace(told, out=tmp_path / "other").run()


def test_a_killed_run_ends_in_the_bytes_of_an_unbroken_one(build, tmp_path, monkeypatch):
    def digests(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    unbroken = replace(build, out=tmp_path / "unbroken")
    unbroken.run()
    build.run()
    for lost in ("shard_00001.safetensors", "contexts.json"):
        (build.out / lost).unlink()
    kept = (build.out / "shard_00000.safetensors").stat().st_mtime_ns
    build.run()
    assert (build.out / "shard_00000.safetensors").stat().st_mtime_ns == kept
    assert digests(build.out) == digests(unbroken.out)
    (build.videos / "a.txt").write_text("the dog")
    with pytest.raises(ValueError, match="begun with other captions, such as that of 'a': choose another --out"):
        build.run()


def add_captions(build: BuildContexts, captions: dict[str, str]) -> dict[str, str]:
    """Writes videos with a caption each and returns all captions, by name."""
    for name, caption in captions.items():
        shutil.copy(build.videos / "a.mp4", build.videos / f"{name}.mp4")
        (build.videos / f"{name}.txt").write_text(caption)
    return CAPTIONS | captions


def check_features(build: BuildContexts, captions: dict[str, str]) -> None:
    """Compares all features of the folder with those of a run that is never resumed."""
    whole = replace(build, out=build.out.parent / "whole", shard_contexts=len(captions))
    whole.run()
    found, wanted = Contexts(build.out), Contexts(whole.out)
    assert {name: entry["caption"] for name, entry in found.entries.items()} == captions
    for name in captions:
        torch.testing.assert_close(found.read(name, 24), wanted.read(name, 24), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_added_captions_follow_a_last_shard_that_is_not_full(build, size):
    build.run()
    captions = add_captions(build, {"e": "a dog", "f": "the snow", "g": "cat in snow"})
    assert replace(build, shard_contexts=size).run()["contexts"] == 7
    check_features(build, captions)


def test_shards_after_a_damaged_one_never_meet_those_made_again(build):
    replace(build, shard_contexts=1).run()
    (build.out / "shard_00001.safetensors").write_bytes(b"")
    build.run()
    assert {path.name for path in build.out.glob("shard_*")} == {"shard_00000.safetensors", "shard_00001.safetensors"}
    check_features(build, CAPTIONS)


def test_umt5_is_not_loaded_when_nothing_is_left_to_encode(build, umt5, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(umt5, copy)
    build = replace(build, text_encoder=str(copy))
    summary = build.run()
    shutil.rmtree(copy)
    assert build.run() == summary
    with pytest.raises(ValueError, match="cannot be loaded"):
        replace(build, negative="the dog sleeps").run()
    (build.out / "negative.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        build.run()


def run_offline(build: BuildContexts, cache: Path, name: str, **offline: str) -> subprocess.CompletedProcess:
    """Runs the command with a name of the model hub in a process whose hub cannot be reached."""
    environment = {**os.environ, "HF_HOME": str(cache), "PYTHONPATH": str(REPO), **offline}
    options = ["--out", build.out, "--videos", build.videos, "--text-encoder", name, "--negative", build.negative, "--device", "cpu"]
    command = [sys.executable, "-m", "simplegvr_core", "contexts", *map(str, options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("parts", [True, False])
def test_umt5_comes_from_the_hub_s_cache_without_a_network(build, umt5, tmp_path, parts):
    repository = tmp_path / "cache" / "hub" / "models--someone--umt5"
    snapshot = repository / "snapshots" / f"{1:040x}"
    if parts:
        shutil.copytree(umt5, snapshot)
    else:
        for part in ("text_encoder", "tokenizer"):
            shutil.copytree(umt5 / part, snapshot, dirs_exist_ok=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    done = run_offline(build, tmp_path / "cache", "someone/umt5", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0 and "127.0.0.1" not in done.stderr, done.stderr[-3000:]
    local = replace(build, out=tmp_path / "local")
    local.run()
    for name in CAPTIONS:
        torch.testing.assert_close(Contexts(build.out).read(name, 24), Contexts(local.out).read(name, 24), atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_a_name_that_is_not_in_the_cache_is_refused_without_a_network(build, tmp_path):
    done = run_offline(build, tmp_path / "cache", "someone/umt5", HF_HUB_OFFLINE="1")
    assert done.returncode and "--text-encoder someone/umt5 cannot be loaded" in done.stderr
    assert "give a folder of umT5, or a hub name that is in the hub's cache or that the network reaches" in done.stderr


def test_captions_of_a_command_are_read_in_any_locale(build, tmp_path):
    (build.videos / "b.txt").unlink()
    known = build.out / "captions.json"
    known.parent.mkdir()
    known.write_text(json.dumps({"b": "雪 dog"}, ensure_ascii=False), encoding="utf-8")
    options = ["--out", build.out, "--videos", build.videos, "--captioner", "false", "--text-encoder", build.text_encoder]
    command = [sys.executable, "-m", "simplegvr_core", "contexts", *map(str, options), "--device", "cpu"]
    latin = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=latin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Contexts(build.out).entries["b"]["caption"] == "雪 dog"
    known.write_text('{"b": "a d')
    with pytest.raises(ValueError, match=r"captions\.json is damaged \(.*\): delete it, and --captioner captions again"):
        replace(build, captioner="false", out=known.parent).run()


def test_training_reads_the_features_of_a_pair_s_video(build, tmp_path):
    build.run()
    latents = {"00000.z_lr": torch.zeros(16, 1, 2, 2), "00000.z_hr": torch.zeros(16, 1, 4, 4)}
    save_file(latents, tmp_path / "shard_00000.safetensors")
    entry = {"id": 0, "shard": "shard_00000.safetensors", "video": "below/c.mp4", "frame": 0, "scale": 2}
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [entry]}))
    sampler = PairSampler((tmp_path,), Crop(num_frames=1, size=(4, 4), batch=2), build.out, null_prompt=0.0)
    features = sampler.read(Draws(0, 0, range(2), 2), 24)["context"]
    own = Contexts(build.out).read("below/c", 24)
    assert features.shape == (2, 512, 24) and torch.equal(features[1, : len(own)], own) and not features[:, len(own) :].any()


def test_evaluation_reads_the_index_once(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write_video(tmp_path / "clips" / f"{name}.mp4", torch.randint(0, 255, (5, 48, 64, 3), dtype=torch.uint8), Fraction(24))
        (tmp_path / "clips" / f"{name}.txt").write_text("a cat")
    save_umt5(tmp_path / "umt5", d_model=4096)
    build = BuildContexts(tmp_path / "captions", tmp_path / "clips", text_encoder=str(tmp_path / "umt5"), device="cpu")
    build.run()
    paths = []
    monkeypatch.setattr(context, "read_json", lambda path, cure: paths.append(path) or read_json(path, cure))
    chosen = {"contexts": build.out, "metrics": ("lr_consistency",), "suite": "aigc", "scale": 2, "num_frames": 5, "device": "cpu"}
    results = Evaluate(tmp_path / "clips", tmp_path / "evaluated", ("gvr",), **chosen).run()
    assert len(results["clips"]) == 3 and paths == [build.out / "contexts.json"]


def test_damaged_features_are_named(build):
    build.run()
    shard = build.out / "shard_00000.safetensors"
    tensors = load_file(shard)
    tensors["00001.context"][0, 0] += 1
    save_file(tensors, shard)
    Contexts(build.out).read("a", 24)
    with pytest.raises(ValueError, match=r"shard_00000\.safetensors is damaged at the features of 'b': delete it and run"):
        Contexts(build.out).read("b", 24)
    with pytest.raises(ValueError, match=r"has no features of 'z': give it a caption"):
        Contexts(build.out).read("z", 24)
    with pytest.raises(ValueError, match=r"shape \(4, 24\), wanted \(tokens, 32\)"):
        Contexts(build.out).read("a", 32)


def test_options_that_cannot_work_are_refused(build, tmp_path):
    with pytest.raises(ValueError, match="no captions: give a folder of video"):
        replace(build, videos=None).run()
    with pytest.raises(ValueError, match=r"cannot be loaded .* give a folder of umT5"):
        replace(build, text_encoder=str(REPO / "tests")).run()
    (build.videos / "a.txt").write_bytes("né".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is no text in UTF-8 .*: save it as UTF-8"):
        build.run()
    (tmp_path / "table.csv").write_text("name,text\na,b\n")
    with pytest.raises(ValueError, match=r"table\.csv cannot be read .*: wanted CSV with columns"):
        replace(build, captions=tmp_path / "table.csv").run()
    (tmp_path / "table.csv").write_text("video,caption\nz.mp4,snow\n")
    with pytest.raises(ValueError, match=r"has 'z', which is no video of .*: correct the table"):
        replace(build, captions=tmp_path / "table.csv").run()
