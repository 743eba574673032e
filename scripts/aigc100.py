"""Builds AIGC100, videos that a text-to-video model makes of 100 prompts: `python3 scripts/aigc100.py --out DIR [--address URL]`.

Has a ComfyUI make the low-resolution latent of each prompt; leaves DIR/latents, small videos of them in DIR/videos, workflow.json and
manifest.json. What is there already is kept: run the same command again to go on. docs/evaluation.md says what to do with them.
"""

import argparse
import asyncio
import json
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path

from comfyui import DEMO, HOME, REPO, SetupError, enter, say, server

WORKFLOWS = REPO / "workflows" / "api"
PROMPTS = REPO / "workflows" / "aigc100.txt"
PREFIX = "aigc100/clip"  # of the files in ComfyUI's output folder
STAND_IN = "no ComfyUI that has these models? Try the bundled ones: --workflow workflows/api/wiring_test_t2v.json, without --address"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the latents and videos")
    parser.add_argument("--address", help="your running ComfyUI, such as http://127.0.0.1:8188 (default: our own, with the bundled models)")
    workflow = "text-to-video workflow in API format, of which only what makes its latent runs (default: Wan 2.1 1.3B)"
    parser.add_argument("--workflow", type=Path, default=WORKFLOWS / "wan21_t2v_to_1080p.json", help=workflow)
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="text file, a prompt a line (default: ours, a hundred)")
    parser.add_argument("--count", type=int, help="only so many prompts, from the first")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; every next has one more (default: 0)")
    parser.add_argument("--set", action="append", default=[], metavar="CLASS.input=value", help="changes an input: KSampler.steps=20")
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0 when every prompt has its video."""
    from t2v_workflow import base_workflow, prompt_nodes, with_settings

    try:
        workflow = json.loads(arguments.workflow.read_text(encoding="utf-8"))
        workflow = base_workflow(with_settings(workflow, arguments.set), PREFIX)
    except ValueError as error:
        raise SetupError(f"--workflow {arguments.workflow}: {error}") from error
    prompts = list(filter(None, map(str.strip, arguments.prompts.read_text(encoding="utf-8").splitlines())))[: arguments.count]
    if not any(prompt_nodes(workflow)):
        say("this workflow takes no text: its videos differ by their seeds alone")
    collection = Collection(arguments.out, workflow, arguments.seed)
    base = HOME / "base"
    base.mkdir(parents=True, exist_ok=True)
    log = base / f"server_{os.getpid()}.log"
    with nullcontext((arguments.address, None)) if arguments.address else server(base, log=log) as (address, _):
        asyncio.run(collection.build(address.rstrip("/"), prompts, None if arguments.address else base / "output"))
    log.unlink(missing_ok=True)
    failed = collection.manifest["failed"]
    for name, reason in failed.items():
        say(f"{name}: {reason}")
    there = f"{len(collection.manifest['clips'])} videos in {arguments.out}"
    say(f"{there}, {len(failed)} failed: run the same command again to try them again" if failed else there)
    return 1 if failed else 0


class Collection:
    """A folder of latents and their videos, made by one workflow; manifest says of what each was made, and what failed why."""

    def __init__(self, folder: Path, workflow: dict, seed: int):
        """Raises SetupError when the folder holds the work of another workflow or seed."""
        from t2v_workflow import prompt_nodes

        self.folder, self.workflow, self.seed = folder, workflow, seed
        self.manifest = {"seed": seed, "takes_text": any(prompt_nodes(workflow)), "clips": {}, "failed": {}}
        made_by = folder / "workflow.json"
        if made_by.exists():
            self.manifest = json.loads((folder / "manifest.json").read_text())
            if json.loads(made_by.read_text()) != workflow or self.manifest["seed"] != seed:
                raise SetupError(f"--out {folder} was begun with another workflow, setting or seed: take another folder, or the same ones")

    async def build(self, address: str, prompts: list[str], output: Path | None) -> None:
        """Makes what is missing. output: the server's output folder when it is our own, so that nothing is left in it.

        Raises SetupError when the server is not there or cannot run the workflow at all.
        """
        import aiohttp
        from client import Event, WorkflowError, WorkflowRejectedError
        from tqdm import tqdm

        self.write("manifest.json", json.dumps(self.manifest, indent=1).encode())
        self.write("workflow.json", json.dumps(self.workflow, indent=1).encode())
        with tqdm(prompts, unit="video") as bar:

            def show(event: Event) -> None:
                if event.kind == "progress":
                    bar.set_postfix_str(f"{self.workflow[event.node]['class_type']} {event.value}/{event.maximum}")

            for number, prompt in enumerate(bar, 1):
                name = file_name(number, prompt)
                if self.manifest["clips"].get(name, {}).get("prompt") == prompt and self.is_there(name):
                    continue
                self.manifest["failed"].pop(name, None)
                try:
                    self.manifest["clips"][name] = await self.make(address, name, prompt, self.seed + number - 1, output, show)
                except WorkflowRejectedError as error:
                    raise SetupError(f"{error}\n{STAND_IN}") from error
                except WorkflowError as error:
                    self.manifest["failed"][name] = str(error).strip()
                except (aiohttp.ClientError, asyncio.TimeoutError) as error:  # which is no TimeoutError in Python 3.10
                    raise SetupError(f"ComfyUI at {address} does not answer ({error}): start it and run the same command again") from error
                self.write("manifest.json", json.dumps(self.manifest, indent=1).encode())

    def is_there(self, name: str) -> bool:
        return all((self.folder / self.manifest["clips"][name][kind]).exists() for kind in ("latent", "video"))

    async def make(self, address: str, name: str, prompt: str, seed: int, output: Path | None, show) -> dict:
        """Returns what the manifest says of a clip, after making its files."""
        from client import download, run_workflow
        from t2v_workflow import LATENT, VIDEO, with_prompt

        outputs = await run_workflow(address, with_prompt(self.workflow, prompt, seed), show)
        files = {"latent": outputs[LATENT]["latents"][0], "video": outputs[VIDEO]["images"][0]}
        clip = {"prompt": prompt, "seed": seed}
        for kind, file in files.items():
            clip[kind] = f"{kind}s/{name}{Path(file['filename']).suffix}"
            self.write(clip[kind], await download(address, file))
            if output:
                (output / file["subfolder"] / file["filename"]).unlink()
        return clip

    def write(self, name: str, content: bytes) -> None:
        from simplegvr_core.files import atomic_write

        with atomic_write(self.folder / name) as partial:
            partial.write_bytes(content)


def file_name(number: int, prompt: str) -> str:
    """Returns a name for a prompt's files, such as 007_two_boxers_spar_in."""
    return "_".join([f"{number:03}", *re.findall(r"[a-z0-9]+", prompt.lower())[:4]])


if __name__ == "__main__":
    arguments = parse_arguments()
    enter(DEMO)
    try:
        sys.exit(main(arguments))
    except (SetupError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        say("stopped: run the same command again to go on")
