"""Working files: damaged ones are made again, two runs never share them, and no other server deletes them."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import comfyui as setup
import pytest
import torch
from client import Event, WorkflowError, output_files, run_workflow
from conftest import random_weights
from filelock import FileLock
from safetensors.torch import save_file
from soak_cases import workflow
from soak_runs import Server
from test_decode import latent
from test_faults import TILES, WIDE

from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler
from simplegvr_core.sampling.latent_file import TensorFrames
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.sampling.super_resolve_to_file import super_resolve_to_file, torch_runtime
from simplegvr_core.video.decode import StreamDecoder, decode_to_parts, tiles_of_frame
from simplegvr_core.video.write import Encoding

STEPS = 4
TINY_VAE = setup.REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors"
DAMAGES = {
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "cut": lambda data: data[: len(data) // 2],
    "values zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


class Stopped(Exception):
    pass


# Damaged files of an earlier run


@pytest.fixture(scope="module")
def network():
    config = DiTConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1)
    return random_weights(SimpleGVRDiT(config, AttentionConfig(window=(1, 3, 2), top_k=1, unit=2)))


def resolve(network, folder: Path, stop_in: int | None = None, solver: str = "euler") -> tuple[torch.Tensor, list[str], list[int]]:
    """Returns the latent, the notes and the steps that were computed. stop_in: the step, from 0, in which the run stops."""
    z_lr, notes, steps = torch.randn(1, 16, 3, 4, 5, generator=torch.Generator().manual_seed(0)), [], []

    def on_segment(step: int, first_frame: int, z_0: torch.Tensor) -> None:
        steps.append(step)
        if step == stop_in:
            raise Stopped

    runtime = torch_runtime(network, LatentUpsampler(VARIANTS["bilinear"]), like=z_lr, on_segment=on_segment)
    runtime = replace(runtime, note=notes.append)
    sampling = SamplingConfig(steps=STEPS, denoise=0.7, solver=solver)
    return super_resolve_to_file(folder, TensorFrames(z_lr), (8, 10), runtime, sampling=sampling)[:], notes, steps


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "first_step"), [("z.safetensors", 3), ("z_odd.safetensors", 2), ("upsampled.safetensors", 3), ("condition.safetensors", 3)]
)
def test_a_damaged_file_of_the_sampler_is_made_again(network, tmp_path, damage, name, first_step, solver):
    """After three of four steps the folder has steps 2 (z) and 3 (z_odd): without the third, one step is done again."""
    expected, _, _ = resolve(network, tmp_path / "whole", solver=solver)
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        resolve(network, folder, stop_in=3, solver=solver)
    assert {path.name for path in folder.iterdir()} == {
        "z.safetensors", "z_odd.safetensors", "upsampled.safetensors", "condition.safetensors"
    }  # fmt: skip
    (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
    result, notes, steps = resolve(network, folder, solver=solver)
    assert notes == [f"{name} of an earlier run was damaged and is made again."]
    assert steps == list(range(first_step, STEPS))
    assert torch.equal(result, expected)


def test_with_all_steps_damaged_the_run_begins_anew(network, tmp_path):
    expected, _, _ = resolve(network, tmp_path / "whole")
    with pytest.raises(Stopped):
        resolve(network, tmp_path / "stopped", stop_in=2)
    for path in (tmp_path / "stopped").iterdir():
        path.write_bytes(b"")
    result, notes, steps = resolve(network, tmp_path / "stopped")
    assert (len(notes), steps) == (4, list(range(STEPS)))
    assert torch.equal(result, expected)


@torch.inference_mode()
def decode(folder: Path, stop_at: int | None = None) -> tuple[list[bytes], list[str], list[int]]:
    """Returns the parts, the notes and the chunks that were decoded, by their first latent frames."""
    decoder = StreamDecoder(load_tiny_vae(TINY_VAE).decode_chunk, tiles_of_frame((3, 5), lambda height, width: True), lambda error: False)
    notes, chunks = [], []

    def on_chunk(start: int, stop: int) -> None:
        chunks.append(start)
        if start == stop_at:
            raise Stopped

    plan = {"frames": 29, "encoding": Encoding(40, 24, 24, 0.0), "folder": folder, "part_length": 1}
    parts = decode_to_parts(latent(8, (3, 5))["samples"], decoder, **plan, on_chunk=on_chunk, note=notes.append)
    return [path.read_bytes() for path in parts], notes, chunks


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "first_chunk"),
    [("progress.safetensors", 5), ("progress_odd.safetensors", 3), ("part_00002.mp4", 3), ("part_00000.mp4", 0)],
)
def test_a_damaged_file_of_the_decoder_is_made_again(tmp_path, damage, name, first_chunk):
    """After three of five parts the folder has the states after parts 2 and 3: without the third, one part is decoded again."""
    expected, _, _ = decode(tmp_path / "whole")
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        decode(folder, stop_at=5)
    (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
    parts, notes, chunks = decode(folder)
    assert notes
    assert all(name in note for note in notes)
    assert chunks[0] == first_chunk
    assert parts == expected


# Two processes


def run_paths(server: Server) -> list[str]:
    return [name for name in server.files() if name.startswith(("output/simplegvr_", "temp/simplegvr_"))]


def decoded(case, steps_seconds: float = 0) -> dict:
    """Returns the workflow of a case that also saves the video, bit by bit the same for the same latent."""
    nodes = workflow(case)
    nodes["vae"] = {"class_type": "SimpleGVRLoadTinyVAE", "inputs": {"vae_name": "gvr_tiny_vae.safetensors"}}
    video = {"vae": ["vae", 0], "latent": ["sampler", 0], "fps": 24.0, "filename_prefix": "video/working", "trim": "none", "crf": 0.0}
    nodes["video"] = {"class_type": "SimpleGVRDecodeSave", "inputs": {**video, "resume": case.sampler["resume"]}}
    nodes["decode_report"] = {"class_type": "PreviewAny", "inputs": {"source": ["video", 1]}}
    return nodes


def run(server, nodes: dict, **faults) -> SimpleNamespace:
    """Returns latent, video and reports of a workflow of `decoded`."""
    from safetensors.torch import load_file

    (server.base / "input" / "faults.json").write_text(json.dumps(faults))
    outputs = asyncio.run(run_workflow(server.address, nodes))
    saved = server.base / "output" / outputs["save"]["latents"][0]["filename"]
    (video,) = output_files({"video": outputs["video"]}, server.base / "output")
    reports = outputs["report"]["text"][0], outputs["decode_report"]["text"][0]
    return SimpleNamespace(latent=load_file(saved)["latent_tensor"], video=video, reports=reports)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A server, and what it makes of a prompt."""
    server = Server(tmp_path_factory.mktemp("working") / "base")
    yield SimpleNamespace(server=server, result=run(server, decoded(WIDE)))
    server.stop()


def pixels(video: Path) -> torch.Tensor:
    from simplegvr_core.video.read import read_video

    return read_video(video)[0]


def check_same(result, expected) -> None:
    assert torch.equal(result.latent, expected.latent)
    assert torch.equal(pixels(result.video), pixels(expected.video))


def test_a_run_survives_that_the_temp_folder_is_emptied(first):
    """As ComfyUI does whenever a server with the same base folder starts or ends."""
    done = threading.Event()

    def empty() -> None:
        while not done.wait(0.02):
            shutil.rmtree(first.server.base / "temp", ignore_errors=True)

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        result = run(first.server, decoded(WIDE), seconds=0.01)
    finally:
        done.set()
        thread.join()
    check_same(result, first.result)
    assert run_paths(first.server) == []


@pytest.mark.slow
def test_a_run_survives_five_other_servers_on_its_base_folder(first):
    """They start and end while the run samples and decodes."""

    def others() -> None:
        for _ in range(5):
            with setup.server(first.server.base, log=first.server.base / "other.log"):
                pass

    thread = threading.Thread(target=others)
    thread.start()
    results = []
    while thread.is_alive():
        results.append(run(first.server, decoded(WIDE), seconds=0.2))
    thread.join()
    for result in results:
        check_same(result, first.result)


def test_two_servers_run_the_same_prompt_with_resume(first, tmp_path):
    """The second works in a folder of its own, and says so. It ends while the first still runs, or after it: both end well."""
    case = replace(WIDE, sampler={**WIDE.sampler, "resume": True})
    second_base = tmp_path / "second"
    setup.link_pack(second_base)
    shutil.rmtree(second_base / "output")
    setup.link_folder(second_base / "output", first.server.base / "output")
    shutil.copytree(first.server.base / "input", second_base / "input", dirs_exist_ok=True)
    results, errors = [], []

    def run_first() -> None:
        try:
            results.append(run(first.server, decoded(case), seconds=0.1))
        except Exception as error:
            errors.append(error)

    from soak_runs import FAULTS

    with setup.server(second_base, beside=(FAULTS,)) as (address, _):
        thread = threading.Thread(target=run_first)
        thread.start()
        while not any("z" in Path(name).stem for name in run_paths(first.server)) and thread.is_alive():
            time.sleep(0.05)
        second = run(SimpleNamespace(address=address, base=second_base), decoded(case), seconds=0)
        thread.join()
    assert errors == []
    for result in (*results, second):
        check_same(result, first.result)
    assert results[0].video != second.video
    assert "Another process runs the same prompt with resume" in second.reports[0]
    assert run_paths(first.server) == []


def test_the_folder_of_a_dead_process_is_deleted_and_that_of_a_live_one_kept(first):
    work = first.server.base / "output" / "simplegvr_work"
    for name in ("dead", "alive"):
        (work / name).mkdir(parents=True)
        (work / name / "z.safetensors").write_bytes(b"1")
        (work / f"{name}.lock").touch()
    with FileLock(work / "alive.lock"):
        run(first.server, decoded(replace(WIDE, sampler={**WIDE.sampler, "settings.steps": 1})))
        assert sorted(path.name for path in work.iterdir()) == ["alive", "alive.lock"]
    with suppress(OSError):
        shutil.rmtree(work)


@pytest.mark.parametrize("damage", ["empty", "zeroed", "cut"])
def test_a_server_continues_a_run_with_a_damaged_step(first, damage):
    case = replace(WIDE, sampler={**WIDE.sampler, "resume": True})
    with pytest.raises(Exception, match="interrupted"):
        first.server.run(workflow(case), interrupt_after=8, seconds=0.4)
    steps = sorted((first.server.base / "output").rglob("z*.safetensors"), key=lambda path: path.stat().st_mtime)
    assert len(steps) == 2
    steps[-1].write_bytes(DAMAGES[damage](steps[-1].read_bytes()))
    latent, report = first.server.run(workflow(case))
    assert f"{steps[-1].name} of an earlier run was damaged and is made again." in report
    assert "Resumed after step" in report
    assert torch.equal(latent, first.result.latent)
    assert run_paths(first.server) == []


def interrupted(server: Server, nodes: dict, node: str, at: int) -> None:
    """Runs a workflow and interrupts it when the progress of a node is at a value."""

    def interrupt(event: Event) -> None:
        if (event.kind, event.node) == ("progress", node) and event.value >= at:
            urlopen(Request(f"{server.address}/interrupt", data=b"{}", method="POST")).close()

    with pytest.raises(WorkflowError, match="interrupted"):
        asyncio.run(run_workflow(server.address, nodes, interrupt))


def damaged_files(unfinished: Path, snapshot: Path) -> Iterator[tuple[str, str]]:
    """Yields (file, damage) for each file of an unfinished run and each damage, with that file damaged and the others whole.

    Args:
        unfinished: Folder of the resumable runs of a server, with one of them.
        snapshot: Where a copy of it is made.
    """
    shutil.copytree(unfinished, snapshot)
    for path in sorted(path for path in snapshot.rglob("*") if path.suffix in (".safetensors", ".mp4")):
        for damage in ("empty", "zeroed", "cut"):
            shutil.copytree(snapshot, unfinished, dirs_exist_ok=True)
            (unfinished / path.relative_to(snapshot)).write_bytes(DAMAGES[damage](path.read_bytes()))
            yield path.name, damage


def test_a_server_makes_each_damaged_file_of_the_sampler_again(first, tmp_path):
    """After an interrupt in the last of four steps: the upsampled latent, the condition and the last two steps."""
    server, seen = first.server, []
    case = replace(WIDE, sampler={**WIDE.sampler, "settings.steps": 4, "resume": True})
    expected, _ = server.run(workflow(case))
    (server.base / "input" / "faults.json").write_text(json.dumps({"seconds": 0.3}))
    interrupted(server, workflow(case), "sampler", 3 * TILES)
    for name, damage in damaged_files(server.base / "output" / "simplegvr_resume", tmp_path / "snapshot"):
        result, report = server.run(workflow(case))
        assert f"{name} of an earlier run was damaged and is made again." in report, damage
        assert "Resumed after step" in report
        assert torch.equal(result, expected), (name, damage)
        assert run_paths(server) == []
        seen.append(name)
    names = ("condition.safetensors", "upsampled.safetensors", "z.safetensors", "z_odd.safetensors")
    assert seen == [name for name in names for _ in range(3)]


def test_a_server_makes_each_damaged_file_of_the_decoder_again(first, tmp_path):
    """After an interrupt in the third part: two parts of the video, and the decoder's states after them."""
    server, seen = first.server, []
    tensors = {"latent_tensor": latent(61, (12, 20))["samples"], "latent_format_version_0": torch.tensor([])}
    save_file(tensors, server.base / "input" / "long.latent")

    def nodes(prefix: str) -> dict:
        video = {"vae": ["vae", 0], "latent": ["latent", 0], "fps": 24.0, "filename_prefix": prefix, "trim": "none", "crf": 0.0}
        return {
            "vae": {"class_type": "SimpleGVRLoadTinyVAE", "inputs": {"vae_name": "gvr_tiny_vae.safetensors"}},
            "latent": {"class_type": "LoadLatent", "inputs": {"latent": "long.latent"}},
            "video": {"class_type": "SimpleGVRDecodeSave", "inputs": {**video, "resume": True}},
            "report": {"class_type": "PreviewAny", "inputs": {"source": ["video", 1]}},
        }

    def decoded_by_server(prefix: str) -> tuple[torch.Tensor, str]:
        outputs = asyncio.run(run_workflow(server.address, nodes(prefix)))
        (path,) = output_files({"video": outputs["video"]}, server.base / "output")
        return pixels(path), outputs["report"]["text"][0]

    expected, _ = decoded_by_server("whole")
    interrupted(server, nodes("stopped"), "video", 43)
    for name, damage in damaged_files(server.base / "output" / "simplegvr_resume", tmp_path / "snapshot"):
        result, report = decoded_by_server(f"{name}_{damage}")
        assert any(name in line and "damaged" in line for line in report.splitlines()), (name, damage, report)
        assert torch.equal(result, expected), (name, damage)
        assert run_paths(server) == []
        seen.append(name)
    names = ("part_00000.mp4", "part_00001.mp4", "progress.safetensors", "progress_odd.safetensors")
    assert seen == [name for name in names for _ in range(3)]
