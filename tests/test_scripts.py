"""Set-up and demo: what they find, what they refuse, what they leave."""

import json
import os
import socket
import subprocess
import sys

import comfyui as setup
import pytest
import tomlkit
from conftest import REPO

from simplegvr_core.__main__ import COMMANDS
from simplegvr_core.video.read import read_video
from simplegvr_core.video.write import write_video


def test_comfyui_path_comes_first(monkeypatch):
    found = setup.find_comfyui(setup.HOME)
    monkeypatch.setenv("COMFYUI_PATH", str(found))
    assert setup.find_comfyui(REPO / "nowhere") == found.resolve()


def test_a_wrong_comfyui_path_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"COMFYUI_PATH is .* no main\.py"):
        setup.find_comfyui(setup.HOME)


@pytest.mark.skipif(os.name == "nt", reason="a script is no command there")
def test_comfy_clis_workspace_comes_before_the_download(monkeypatch, tmp_path):
    """A stand-in for the command, that answers as comfy-cli 1.23 does."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    workspace = tmp_path / "workspace"
    (workspace / "comfy").mkdir(parents=True)
    (workspace / "main.py").touch()
    answer = json.dumps({"ok": True, "data": {"workspace_path": str(workspace)}})
    (tmp_path / "comfy").write_text(f"#!{sys.executable}\nprint({answer!r})\n")
    (tmp_path / "comfy").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (workspace / "comfyui_version.py").write_text('__version__ = "0.30.1"')
    assert setup.find_comfyui(setup.HOME) == workspace
    (workspace / "comfyui_version.py").write_text('__version__ = "0.9.1"')
    assert setup.find_comfyui(setup.HOME) != workspace


def test_without_network_first_set_up_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("PATH", "")  # no comfy-cli
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(setup.SetupError, match="Check the network and run again, or set COMFYUI_PATH"):
        setup.set_up(tmp_path)
    assert not (tmp_path / "installed.json").exists()


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(setup.SetupError, match=f"port {port} is in use"), setup.server(tmp_path, port):
            pass


def test_a_server_that_cannot_start_shows_its_log(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").write_text("raise SystemExit('no module named what it needs')")
    with pytest.raises(setup.SetupError, match="no module named what it needs"), setup.server(tmp_path / "base"):
        pass


def test_run_finds_our_modules_from_any_folder(tmp_path):
    command = [sys.executable, REPO / "scripts" / "run.py", "-c", "import os, simplegvr_core.flow as f; print(os.getcwd(), f.__file__)"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(tmp_path), str(REPO / "simplegvr_core" / "flow.py")]


def test_demo_on_an_odd_clip_gives_exactly_three_times_its_size(tmp_path):
    images, rate = read_video(REPO / "assets" / "demo_original.mp4")
    write_video(tmp_path / "odd.mp4", images[:, :61, :105], rate)
    command = [sys.executable, REPO / "scripts" / "demo.py", tmp_path / "odd.mp4", "--scale", "3", "--out", tmp_path / "out"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "33 frames, 105 x 61 -> 315 x 183" in out
    result, result_rate = read_video(tmp_path / "out" / "odd_simplegvr.mp4")
    assert result.shape == (33, 183, 315, 3)
    assert result_rate == rate
    assert (tmp_path / "out" / "odd_simplegvr.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["output"] == [33, 183, 315]


REFUSED = [(["none.mp4"], "none.mp4 is not a file"), (["--scale", "0.5"], "--scale is 0.5, wanted 1 to 8")]


@pytest.mark.parametrize("arguments, message", REFUSED)
def test_demo_refuses_bad_arguments_before_set_up(arguments, message):
    result = subprocess.run([sys.executable, REPO / "scripts" / "demo.py", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.fixture
def installations(monkeypatch, tmp_path):
    """Set-up in an empty folder; returns what is installed, which pip would take minutes for."""
    installed = []
    monkeypatch.setenv("COMFYUI_PATH", str(setup.find_comfyui(setup.HOME)))
    monkeypatch.setattr(setup, "run", lambda *_: None)
    monkeypatch.setattr(setup, "install", lambda home, python, comfyui, extras: installed.append(extras))
    return installed


def test_set_up_installs_what_is_missing_and_nothing_twice(installations, monkeypatch, tmp_path):
    for extras in (setup.DEMO, setup.DEMO, ("page", "train"), ("train",), setup.DEMO):
        setup.set_up(tmp_path, extras)
    assert installations == [["core"], ["core", "page", "train"]]
    monkeypatch.setattr(setup, "TORCH", ("torch==2.12.0",))
    setup.set_up(tmp_path, setup.DEMO)
    assert installations[2:] == [["core", "page", "train"]]


def test_each_command_has_the_extras_of_its_table():
    from run import extras

    assert extras(["train", "--preset", "smoke"]) == ("page", "train")
    assert extras(["pairs", "--workers", "2"]) == ("page", "train", "ray")
    assert extras(["ablate"]) == ("page", "train", "evaluate")
    assert extras([]) == setup.DEMO
    assert extras(["-m", "sphinx"]) == extras(["tools/soak.py"]) == setup.EVERYTHING
    declared = tomlkit.parse((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in COMMANDS:
        assert set(extras([name])) - {setup.PAGE} <= set(declared)


def test_weigh_counts_every_file_of_a_package(tmp_path):
    from weigh import table, weigh

    site = tmp_path / "lib" / "python3" / "site-packages"
    for name, numbers in {"torch": (3, 4), "nvidia-x": (5,), "torchvision": (6,)}.items():
        info = site / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        files = [f"{name}/{i}.bin" for i, _ in enumerate(numbers)]
        (site / name).mkdir()
        for file, number in zip(files, numbers, strict=True):
            (site / file).write_bytes(bytes(number * 10**6))
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    sizes = weigh(tmp_path / "bin" / "python")
    assert sizes == {"torch": 7_000_000, "torchvision": 6_000_000, "nvidia-x": 5_000_000}
    assert "| **all but PyTorch** | **6** |\n| PyTorch and its CUDA parts (2 packages) | 12 |\n| **all** | **18** |" in table(sizes)
