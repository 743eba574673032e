"""Pairs: what is in them, what is left out and why, and that nothing but the options changes a byte of them."""

import hashlib
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest
import torch
from conftest import DIT, REPO, random_weights, save_dit
from einops import rearrange
from ray.cluster_utils import Cluster
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.dit import SimpleGVRDiT
from simplegvr_core.networks.tiny_vae import TinyVAE, TinyVAEConfig, load_tiny_vae
from simplegvr_core.training.batches import Crop, PairSampler
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.draws import Draws
from simplegvr_core.training.pair_maker import fractions
from simplegvr_core.training.pairs import Pairs
from simplegvr_core.video.frames import area_downscale, crop_centre, resize_frames, to_images, to_video
from simplegvr_core.video.read import read_video
from simplegvr_core.video.write import write_video

VAE = TinyVAEConfig(8, 1, 8, 1, 8)


def footage(num_frames: int, height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    """Returns images (F, H, W, 3) of a texture that moves a pixel a frame: sharp, of middle brightness, without a cut."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 1, height // 8, width // 8, generator=generator) * 2 - 1
    texture = resize_frames(coarse, (height, width), "bilinear") * 0.6 + 0.2 * torch.randn(1, 1, 1, height, width, generator=generator)
    return to_images(torch.cat([texture.roll(index, dims=4) for index in range(num_frames)], dim=2))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "report.json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a tiny autoencoder and a tiny text-to-video model."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint.save(folder / "vae.safetensors", "tiny_vae", random_weights(TinyVAE(VAE)).state_dict(), model=VAE)
    save_dit(folder / "t2v.safetensors", replace(DIT, in_dim=16))
    save_dit(folder / "gvr.safetensors")
    return folder


@pytest.fixture
def build(tmp_path, models, monkeypatch, one_thread):
    """A command whose videos are a.mp4 (3 clips of 5 frames) and below/b.mp4 (2)."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # where MUSIQ's weights would be
    write_video(tmp_path / "videos" / "a.mp4", footage(17), Fraction(24))
    write_video(tmp_path / "videos" / "below" / "b.mp4", footage(11, 53, 99, seed=1), Fraction(24))
    return BuildPairs(
        tmp_path / "videos", models / "vae.safetensors", tmp_path / "out", "area", num_frames=5, spacing=5, scales=(2, 3), seed=5
    )


def test_a_pair_is_the_latents_of_a_clip_and_of_its_small_version(build):
    summary = build.run()
    assert (summary["pairs"], summary["clips"], summary["dropped"], summary["skipped"]) == (5, 5, {}, {})
    pairs, vae = Pairs(build.out), load_tiny_vae(build.vae)
    assert len(pairs) == 5
    assert set(pairs.scales) == {2, 3}
    for i, (name, start) in enumerate([("a.mp4", 0), ("a.mp4", 5), ("a.mp4", 10), ("below/b.mp4", 0), ("below/b.mp4", 5)]):
        scale = int(pairs.scales[i])
        z_lr, z_hr = pairs[i]
        assert pairs.entries[i] == {"id": i, "shard": "shard_00000.safetensors", "video": name, "frame": start, "scale": scale}
        video = to_video(crop_centre(read_video(build.videos / name)[0][start : start + 5], 8 * scale))
        assert z_hr.shape == (16, 2, video.shape[3] // 8, video.shape[4] // 8)
        assert z_hr.shape[2:] == (scale * z_lr.shape[2], scale * z_lr.shape[3])
        assert z_lr.dtype == z_hr.dtype == torch.float32
        torch.testing.assert_close(z_hr, vae.encode(video)[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(z_lr, vae.encode(area_downscale(video, scale))[0], atol=2e-3, rtol=2e-3)


def test_the_middle_of_a_picture_is_kept():
    images = torch.arange(5 * 7).view(1, 5, 7, 1)
    assert torch.equal(crop_centre(images, 3)[0, :, :, 0], torch.arange(5 * 7).view(5, 7)[1:4, :6])


def test_what_is_not_worth_training_on_is_dropped_and_reported(build):
    still = footage(5, seed=2)
    blurred = to_images(resize_frames(resize_frames(to_video(still), (4, 6), "area"), (64, 96), "bicubic"))
    dim, bright = (rearrange([still // 16] * 5, "n F H W C -> (n F) H W C")[:5], 255 - still // 16)
    cut = torch.cat([footage(3, seed=3) // 2, 255 - footage(2, seed=4) // 2])
    for name, images in {"blurred": blurred, "dark": dim, "bright": bright, "cut": cut}.items():
        write_video(build.videos / f"{name}.mp4", images, Fraction(24))
    summary = build.run()
    assert summary["dropped"] == {"blurred": 1, "too dark": 1, "too bright": 1, "shot cut": 1}
    assert summary["pairs"] == 5
    report = json.loads((build.out / "report.json").read_text())
    dropped = {clip["video"]: (clip["frame"], clip["reason"], clip["detail"]) for clip in report["dropped_clips"]}
    assert dropped["cut.mp4"] == (0, "shot cut", "between its frames 2 and 3")
    assert dropped["dark.mp4"][2].endswith("wanted 25 to 230")
    assert dropped["blurred.mp4"][2].startswith("Laplacian variance")
    assert report["musiq"].startswith("not applied")


def test_a_pair_depends_on_its_own_clip_and_the_seed_alone(build, tmp_path):
    classical = replace(build, recipe="classical")
    classical.run()
    (build.videos / "a.mp4").unlink()
    alone, reseeded = replace(classical, out=tmp_path / "alone"), replace(classical, out=tmp_path / "reseeded", seed=1)
    alone.run()
    reseeded.run()
    for i in range(2):
        for together, by_itself in zip(Pairs(build.out)[3 + i], Pairs(alone.out)[i], strict=True):
            assert torch.equal(together, by_itself)
    assert any(not torch.equal(Pairs(alone.out)[i][0], Pairs(reseeded.out)[i][0]) for i in range(2))


def test_a_killed_run_ends_in_the_bytes_of_an_unbroken_one(build, tmp_path):
    write_video(build.videos / "a.mp4", footage(200), Fraction(24))
    unbroken = replace(build, recipe="classical", shard_pairs=2)
    unbroken.run()
    killed = replace(unbroken, out=tmp_path / "killed")
    options = {
        "videos": killed.videos,
        "vae": killed.vae,
        "out": killed.out,
        "recipe": "classical",
        "num-frames": 5,
        "spacing": 5,
        "seed": 5,
    }
    command = [sys.executable, "-m", "simplegvr_core", "pairs", "--shard-pairs", "2", "--scales", "2", "3"]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    child = subprocess.Popen(command, cwd=REPO, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while child.poll() is None and not (killed.out / "shard_00003.safetensors").exists():
        time.sleep(0.002)
    child.kill()
    assert child.wait() != 0
    kept = digests(killed.out)
    assert "pairs.json" not in kept
    written = (killed.out / "shard_00003.safetensors").stat().st_mtime_ns
    killed.run()
    assert (killed.out / "shard_00003.safetensors").stat().st_mtime_ns == written
    assert digests(killed.out) == digests(unbroken.out)
    assert len(digests(killed.out)) == 21 + 2  # shards of 2 of 42 pairs, and two indices


def test_a_folder_goes_on_with_the_options_it_was_begun_with(build):
    build.run()
    before = digests(build.out)
    assert build.run()["pairs"] == 5
    assert digests(build.out) == before
    with pytest.raises(ValueError, match=r"was begun with scales = \[2, 3\], now it is \[3\]: give the same to resume, or choose another"):
        replace(build, scales=(3,)).run()
    with pytest.raises(ValueError, match=r"begun with filters\.min_luma = 25, now it is 26"):
        replace(build, filters=replace(build.filters, min_luma=26)).run()
    write_video(build.videos / "c.mp4", footage(5), Fraction(24))
    with pytest.raises(ValueError, match=r"begun with videos\.c\.mp4 = None, now it is 5 frames"):
        build.run()
    assert digests(build.out) == before


def test_a_full_disk_leaves_nothing_half_written(build, tmp_path):
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"shard_00000\.safetensors cannot be written .*: free space there .* run the same command again"):
            build.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in build.out.iterdir()] == ["build.json"]
    build.run()
    other = replace(build, out=tmp_path / "other")
    other.run()
    assert digests(build.out) == digests(other.out)


def test_an_output_that_cannot_be_written_is_named(build, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.out is below a file, wanted a folder: choose another"):
        replace(build, out=tmp_path / "file" / "out").run()


def test_processes_of_a_ray_cluster_make_the_same_shards(build, models, tmp_path):
    """A real cluster of two processes on this machine. The recipe has optical flow and a text-to-video model in it."""
    alone = replace(build, recipe="aigc", t2v=models / "t2v.safetensors", shard_pairs=2)
    together = replace(alone, out=tmp_path / "together", workers=2)
    alone.run()
    together.run()
    assert digests(together.out) == digests(alone.out)
    assert len(Pairs(together.out)) == 5
    throughput = json.loads((together.out / "report.json").read_text())["throughput"]
    assert throughput["workers"] in (1, 2) and throughput["making_seconds"] > throughput["reading_seconds"] > 0
    assert together.run()["pairs"] == 5  # what is finished needs no cluster
    assert json.loads((together.out / "report.json").read_text())["throughput"] == throughput


@pytest.mark.slow
def test_pairs_are_made_on_gpus_while_the_cpus_read(build, tmp_path):
    """A cluster of one CPU and a GPU that is none: the device is the CPU by another name."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    try:
        replace(build, out=tmp_path / "gpu", device="cpu:0", ray=cluster.address).run()
    finally:
        cluster.shutdown()
    build.run()
    for folder in (tmp_path / "gpu", build.out):
        (folder / "build.json").unlink()  # it has the device's name
    assert digests(tmp_path / "gpu") == digests(build.out)


@pytest.mark.slow
def test_what_a_worker_of_a_cluster_refuses_is_named_as_without_one(stock, tmp_path):
    contexts, negative = tmp_path / "contexts", tmp_path / "contexts" / "negative.safetensors"
    (contexts / "a.safetensors").unlink()
    with pytest.raises(ValueError, match=r'a\.safetensors has no tensor "context"'):
        replace(stock, contexts=contexts, negative=negative, workers=1).run()


@pytest.mark.slow
def test_a_killed_process_of_a_cluster_costs_no_pair(build, tmp_path):
    """The first process that makes pairs is killed as soon as it is there."""
    together = replace(build, out=tmp_path / "together", workers=2, shard_pairs=2)
    killed, finished = [], Event()

    def kill_one() -> None:
        while not killed and not finished.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "Making" in " ".join(process.cmdline()):
                        killed.append(process.pid)
                        process.kill()
                        break

    killer = Thread(target=kill_one)
    killer.start()
    together.run()
    finished.set()
    killer.join()
    replace(build, shard_pairs=2).run()
    assert killed and digests(together.out) == digests(build.out)


def test_a_recipe_with_a_model_wants_one_that_fits(build, models):
    with pytest.raises(ValueError, match="'aigc' is made by a text-to-video model: give its checkpoint with --t2v"):
        replace(build, recipe="aigc").run()
    with pytest.raises(ValueError, match=r"gvr\.safetensors takes 32 channels, a text-to-video model 16"):
        replace(build, recipe="aigc", t2v=models / "gvr.safetensors").run()


@pytest.fixture
def stock(build, models, tmp_path):
    """The command with a text-to-video model as Wan's authors store it, and features of two captions and of a negative prompt."""
    weights = {f"model.diffusion_model.{key}": value for key, value in load_file(models / "t2v.safetensors").items()}
    save_file(weights, tmp_path / "wan.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "below/b", "negative"):
        (tmp_path / "contexts" / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"context": torch.randn(7, DIT.text_dim, generator=generator)}, tmp_path / "contexts" / f"{name}.safetensors")
    return replace(build, recipe="aigc", t2v=tmp_path / "wan.safetensors", t2v_steps=3)


def base_of(folder: Path) -> dict:
    with safe_open(folder / "shard_00000.safetensors", "pt") as shard:
        return json.loads(shard.metadata()["simplegvr_pairs"])["base"]


def test_stock_wan_is_refused_without_prompts_as_the_sampler_node_refuses_it(stock, tmp_path):
    contexts, negative = tmp_path / "contexts", tmp_path / "contexts" / "negative.safetensors"
    for lacking in ({}, {"cfg": 1.0}, {"contexts": contexts}, {"negative": negative}):
        with pytest.raises(ValueError, match="is a stock Wan model, which is not trained with the null prompt"):
            replace(stock, **lacking).run()
    assert replace(stock, contexts=contexts, cfg=1.0).run()["pairs"] == 5
    (contexts / "a.safetensors").unlink()
    with pytest.raises(ValueError, match=r'a\.safetensors has no tensor "context"'):
        replace(stock, contexts=contexts, cfg=1.0, out=tmp_path / "lacking").run()


def test_stock_wan_makes_pairs_with_prompts_and_guidance_and_the_shard_says_so(stock, tmp_path):
    chosen = {"contexts": tmp_path / "contexts", "negative": tmp_path / "contexts" / "negative.safetensors"}
    guided = replace(stock, **chosen)
    plain = replace(stock, **chosen, cfg=1.0, out=tmp_path / "plain")
    guided.run()
    plain.run()
    base = base_of(guided.out)
    assert (base["t2v"], base["stock"], base["cfg"], base["steps"], base["shift"]) == ("wan.safetensors", True, 5.0, 3, 5.0)
    assert (base["prompts"], base["negative"], base["alpha"]) == ("captions", "given", [0.3, 0.4])
    assert base["sha256"] == hashlib.sha256(guided.t2v.read_bytes()).hexdigest() and base_of(plain.out)["cfg"] == 1
    alphas = [entry["alpha"] for entry in Pairs(guided.out).entries]
    assert all(0.3 <= alpha <= 0.4 for alpha in alphas) and len(set(alphas)) == 5
    with safe_open(guided.out / "shard_00000.safetensors", "pt") as shard:
        assert [record["alpha"] for record in json.loads(shard.metadata()["simplegvr_pairs"])["records"]] == alphas
    for i in range(5):
        assert not torch.equal(Pairs(guided.out)[i][0], Pairs(plain.out)[i][0]) and torch.equal(
            Pairs(guided.out)[i][1], Pairs(plain.out)[i][1]
        )


def test_the_captions_rows_are_padded_to_those_that_wan_was_trained_on(stock, tmp_path, monkeypatch):
    seen, forward = set(), SimpleGVRDiT.forward
    monkeypatch.setattr(
        SimpleGVRDiT, "forward", lambda self, z, t, context, *rest: seen.add(tuple(context.shape)) or forward(self, z, t, context)
    )
    replace(stock, contexts=tmp_path / "contexts", cfg=1.0).run()
    assert seen == {(1, 512, DIT.text_dim)}


def test_scales_are_drawn_between_whole_numbers_and_both_ends_are_whole_latent_pixels(build, tmp_path):
    for name in ("a.mp4", "below/b.mp4"):
        (build.videos / name).unlink()
    write_video(build.videos / "c.mp4", footage(60, 200, 232), Fraction(24))
    drawn = replace(build, scales=(), out=tmp_path / "drawn")
    assert drawn.run()["pairs"] == 12
    pairs = Pairs(drawn.out)
    assert len(set(pairs.scales)) > 5 and all(1.5 <= scale <= 4 for scale in pairs.scales)
    assert any(scale.denominator > 1 for scale in pairs.scales)
    for i, scale in enumerate(pairs.scales):
        z_lr, z_hr = pairs[i]
        assert all(large == scale * small for large, small in zip(z_hr.shape[2:], z_lr.shape[2:], strict=True))
    gaps = [float(b - a) for a, b in pairwise(fractions(1.5, 4))]
    assert min(fractions(1.5, 4)) == 1.5 and max(fractions(1.5, 4)) == 4 and max(gaps) <= 1 / 6 + 1e-9
    assert {Fraction(9, 4), Fraction(5, 2), Fraction(11, 4)} <= set(fractions(1.5, 4))
    with pytest.raises(ValueError, match="wanted the smallest and the largest scale"):
        replace(build, scales=(), scale_range=(4, 1.5)).run()


@pytest.mark.parametrize("scale", [Fraction(9, 4), Fraction(5, 3), Fraction(2)])
def test_crops_of_fractional_pairs_show_the_same_place_at_both_ends(tmp_path, scale):
    """Latents whose values are their own places: the middle of both crops is the same."""
    large, small = (5 * scale.numerator, 6 * scale.numerator), (5 * scale.denominator, 6 * scale.denominator)
    place = [
        torch.stack(torch.meshgrid(*((torch.arange(side) + 0.5) * factor for side in size), indexing="ij")).float()[:, None]
        for size, factor in ((small, float(scale)), (large, 1.0))
    ]
    z_lr, z_hr = (torch.cat([p, torch.zeros(14, *p.shape[1:])]) for p in place)
    save_file({"00000.z_lr": z_lr, "00000.z_hr": z_hr}, tmp_path / "shard_00000.safetensors")
    entry = {"id": 0, "shard": "shard_00000.safetensors", "video": "v.mp4", "frame": 0, "scale": float(scale)}
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [entry]}))
    size = (2 * scale.numerator + (scale.denominator > 1), 3 * scale.numerator)
    sampler = PairSampler((tmp_path,), Crop(num_frames=1, size=size, batch=8))
    batch = sampler.read(Draws(0, 0, range(8), 8), 4)
    assert batch["z_hr"].shape[3:] == (2 * scale.numerator, 3 * scale.numerator)
    assert batch["z_lr"].shape[3:] == (2 * scale.denominator, 3 * scale.denominator)
    middles = [batch[name][:, :2].mean((2, 3, 4)) for name in ("z_lr", "z_hr")]
    torch.testing.assert_close(*middles)
    assert len(middles[0].unique(dim=0)) > 1
    if scale.denominator > 1:
        with pytest.raises(ValueError, match=f"wanted at least {scale.numerator} for pairs of scale"):
            PairSampler((tmp_path,), Crop(num_frames=1, size=(scale.denominator, 99), batch=1))


def test_clips_follow_each_other_by_default(build, tmp_path):
    build.run()
    default = replace(build, spacing=None, out=tmp_path / "default")
    default.run()
    assert digests(default.out) == digests(build.out)
    assert replace(default, num_frames=9, out=tmp_path / "longer").run()["clips"] == 2


def test_options_that_cannot_work_are_refused(build):
    with pytest.raises(ValueError, match="--num-frames is 16, wanted 4 times"):
        replace(build, num_frames=16, spacing=16).run()
    with pytest.raises(ValueError, match="--spacing is 4 frames, wanted at least the 5"):
        replace(build, spacing=4).run()
    with pytest.raises(ValueError, match="is inside --videos"):
        replace(build, out=build.videos / "out").run()


def test_a_folder_without_pairs_and_a_damaged_shard_are_named(build, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path.name} holds no pairs.json"):
        Pairs(tmp_path)
    build.run()
    shard = build.out / "shard_00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"shard_00000\.safetensors cannot be read .*: delete .* and build it again"):
        Pairs(build.out)[0]
    shard.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        Pairs(build.out)[0]
