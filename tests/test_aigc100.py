"""AIGC100: the part of a workflow that makes its latent, its prompts, and what a real server leaves for the evaluation."""

import json
import re
import threading
import time
import urllib.request
from argparse import Namespace

import aigc100
import pytest
import torch
from comfyui import SetupError
from conftest import REPO
from safetensors.torch import load_file
from t2v_workflow import LATENT, UnusableWorkflowError, base_workflow, with_prompt, with_settings

from simplegvr_core.video.read import read_video

API = REPO / "workflows" / "api"
PROMPTS = REPO / "workflows" / "aigc100.txt"
TINY = ["EmptyHunyuanLatentVideo.width=80", "EmptyHunyuanLatentVideo.height=48", "EmptyHunyuanLatentVideo.length=5", "KSampler.steps=2"]


def workflow(name: str) -> dict:
    return json.loads((API / f"{name}.json").read_text())


def classes(nodes: dict) -> set[str]:
    return {node["class_type"] for node in nodes.values()}


def arguments(server, folder, **changes) -> Namespace:
    given = dict(out=folder, address=server.address, workflow=API / "wiring_test_t2v.json", prompts=PROMPTS, count=2, seed=7, set=TINY)
    return Namespace(**{**given, **changes})


def test_there_are_a_hundred_prompts_of_15_to_40_words_all_different():
    prompts = PROMPTS.read_text().splitlines()
    assert len(set(prompts)) == 100
    assert all(15 <= len(prompt.split()) <= 40 for prompt in prompts)
    assert len({aigc100.file_name(0, prompt) for prompt in prompts}) == 100
    words = [set(re.findall(r"\w{4,}", prompt.lower())) for prompt in prompts]
    assert max(len(a & b) / len(a | b) for i, a in enumerate(words) for b in words[:i]) < 0.25  # no two of one scene


@pytest.mark.parametrize("name", ["wan21_t2v_to_1080p", "wan21_training_free_1080p"])
def test_only_what_makes_the_low_resolution_latent_is_kept(name):
    base = base_workflow(workflow(name), "x")
    made = {"SaveLatent", "VAEDecodeTiled", "CreateVideo", "SaveVideo"}
    sampled = {"KSampler", "EmptyHunyuanLatentVideo", "CLIPTextEncode", "CLIPLoader", "UNETLoader", "ModelSamplingSD3", "VAELoader"}
    assert classes(base) == made | sampled
    assert base["decode"]["inputs"]["samples"] == base[LATENT]["inputs"]["samples"]
    assert base[base[LATENT]["inputs"]["samples"][0]]["class_type"] == "KSampler"
    assert base["video"]["inputs"]["fps"] == 16


def test_a_prompt_goes_to_the_positive_and_a_seed_to_the_sampler():
    base = base_workflow(workflow("wan21_t2v_to_1080p"), "x")
    sampler = base[base[LATENT]["inputs"]["samples"][0]]["inputs"]
    changed = with_prompt(base, "A tram crosses a bridge", 41)
    positive, negative = (changed[sampler[name][0]]["inputs"]["text"] for name in ("positive", "negative"))
    assert positive == "A tram crosses a bridge"
    assert negative == base[sampler["negative"][0]]["inputs"]["text"] != positive
    assert changed[base[LATENT]["inputs"]["samples"][0]]["inputs"]["seed"] == 41
    assert sampler["seed"] != 41  # the one given is untouched


def test_two_samplers_in_a_row_and_custom_samplers_are_followed():
    """As Wan 2.2's two experts, and as SamplerCustomAdvanced with its guider."""

    def node(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    shared = {"clip": node("CLIPLoader", clip_name="c"), "yes": node("CLIPTextEncode", clip=["clip", 0], text="old")}
    shared |= {"no": node("CLIPTextEncode", clip=["clip", 0], text="bad"), "empty": node("EmptyHunyuanLatentVideo", width=80)}
    experts = {
        "high": node("KSamplerAdvanced", noise_seed=1, positive=["yes", 0], negative=["no", 0], latent_image=["empty", 0]),
        "low": node("KSamplerAdvanced", noise_seed=2, positive=["yes", 0], negative=["no", 0], latent_image=["high", 0]),
    }
    custom = {
        "noise": node("RandomNoise", noise_seed=1),
        "guider": node("CFGGuider", positive=["yes", 0], negative=["no", 0]),
        "low": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], latent_image=["empty", 0]),
    }
    end = {"vae": node("VAELoader", vae_name="v"), "out": node("VAEDecode", samples=["low", 0], vae=["vae", 0])}
    for samplers in (experts, custom):
        changed = with_prompt(base_workflow({**shared, **samplers, **end}, "x"), "new", 9)
        assert (changed["yes"]["inputs"]["text"], changed["no"]["inputs"]["text"]) == ("new", "bad")
        seeds = [node["inputs"]["noise_seed"] for node in changed.values() if "noise_seed" in node["inputs"]]
        assert seeds == [9] * (2 if samplers is experts else 1)
        assert changed["video"]["inputs"]["fps"] == 16.0


def test_workflows_of_no_use_are_refused_with_the_cure():
    with pytest.raises(UnusableWorkflowError, match=r"not in API format: .*Export \(API\)"):
        base_workflow(json.loads((REPO / "workflows" / "wiring_test_t2v.json").read_text()), "x")
    with pytest.raises(UnusableWorkflowError, match="decodes no latent"):
        base_workflow({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}, "x")
    with pytest.raises(UnusableWorkflowError, match="nothing before its latent has a seed"):
        decode = {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0], "vae": ["2", 0]}}
        loaders = {"1": {"class_type": "LoadLatent", "inputs": {}}, "2": {"class_type": "VAELoader", "inputs": {}}}
        base_workflow({**loaders, "3": decode}, "x")
    with pytest.raises(UnusableWorkflowError, match=r"--set KSampler\.step=2 fits no node, wanted .*KSampler\.steps"):
        with_settings(workflow("wiring_test_t2v"), ["KSampler.step=2"])


def test_settings_are_json_or_text():
    changed = with_settings(workflow("wan21_t2v_to_1080p"), ["UNETLoader.unet_name=my model.safetensors", "KSampler.cfg=1.5"])
    inputs = {node["class_type"]: node["inputs"] for node in changed.values()}
    assert inputs["UNETLoader"]["unet_name"] == "my model.safetensors"
    assert inputs["KSampler"]["cfg"] == 1.5
    assert isinstance(inputs["KSampler"]["model"], list)


def test_two_prompts_on_a_real_server_then_only_what_is_missing(server, tmp_path, capsys):
    folder = tmp_path / "aigc"
    assert aigc100.main(arguments(server, folder)) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "takes no text" in capsys.readouterr().err and manifest["takes_text"] is False
    clips = manifest["clips"]
    assert [clip["prompt"] for clip in clips.values()] == PROMPTS.read_text().splitlines()[:2]
    assert [clip["seed"] for clip in clips.values()] == [7, 8]
    latents = [load_file(folder / clip["latent"])["latent_tensor"] for clip in clips.values()]
    assert [latent.shape for latent in latents] == [(1, 16, 2, 6, 10)] * 2
    assert not torch.equal(*latents)  # their seeds differ
    for clip in clips.values():
        assert read_video(folder / clip["video"])[0].shape == (5, 48, 80, 3)
    first, second = (folder / clip["latent"] for clip in clips.values())
    kept = first.stat().st_mtime_ns
    second.unlink()
    assert aigc100.main(arguments(server, folder)) == 0
    assert first.stat().st_mtime_ns == kept
    assert torch.equal(load_file(second)["latent_tensor"], latents[1])
    with pytest.raises(SetupError, match="begun with another workflow, setting or seed"):
        aigc100.main(arguments(server, folder, seed=8))


def test_a_prompt_that_fails_is_reported_and_the_next_is_made(server, tmp_path, capsys):
    """Someone stops the first one while it samples; the same command makes it later."""

    def interrupt():
        while not json.load(urllib.request.urlopen(f"{server.address}/queue"))["queue_running"]:
            time.sleep(0.02)
        urllib.request.urlopen(urllib.request.Request(f"{server.address}/interrupt", b"{}", {"Content-Type": "application/json"})).close()

    given = arguments(server, tmp_path, seed=70, set=[*TINY[:3], "KSampler.steps=100"])
    thread = threading.Thread(target=interrupt)
    thread.start()
    assert aigc100.main(given) == 1
    thread.join()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest["failed"].values()) == ["interrupted"]
    assert [name[:3] for name in manifest["clips"]] == ["002"]
    assert "1 videos in" in (said := capsys.readouterr().err) and "1 failed: run the same command again" in said
    assert aigc100.main(given) == 0
    assert json.loads((tmp_path / "manifest.json").read_text())["failed"] == {}


def test_a_server_that_cannot_run_it_or_is_not_there_ends_it_at_once(server, tmp_path):
    with pytest.raises(SetupError, match=r"(?s)value_not_in_list.*--workflow workflows/api/wiring_test_t2v\.json"):
        aigc100.main(
            arguments(server, tmp_path / "wan", workflow=API / "wan21_t2v_to_1080p.json", set=["UNETLoader.unet_name=nowhere.safetensors"])
        )
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9 does not answer"):
        aigc100.main(arguments(server, tmp_path / "none", address="http://127.0.0.1:9"))
