"""What the soak does with a prompt: runs it on a real server with its fault, and holds the result against what is right."""

import asyncio
import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path

import aiohttp
import psutil
from client import WorkflowError, run_workflow
from comfyui import REPO, link_folder
from comfyui import server as serve
from safetensors.torch import load
from soak_cases import BAD_INPUTS, SOURCE, Case, node, workflow
from torch import Tensor

from simplegvr_core.sampling.refine import STATES

FAULTS = REPO / "tests" / "faults"
TOLERANCE = 0.2  # of a run that went on in smaller boxes, in standard deviations


class Unexplained(Exception):
    """A prompt did what it must not do."""


class Server:
    """A ComfyUI server on a folder of its own, that may die and start again."""

    def __init__(self, base: Path):
        self.base = base
        (base / "input").mkdir(parents=True)
        shutil.copy(SOURCE, base / "input")
        self.start()

    def start(self) -> None:
        self.context = serve(self.base, beside=(FAULTS,))
        self.address, self.process = self.context.__enter__()

    def stop(self) -> None:
        self.context.__exit__(None, None, None)

    def run(self, nodes: dict, interrupt_after: float | None = None, **faults) -> tuple[Tensor, str]:
        """Returns the latent (B, 16, T, H, W) and the report of a workflow. Raises WorkflowError, TimeoutError.

        interrupt_after: seconds. faults: what the node in tests/faults does.
        """
        (self.base / "input" / "faults.json").write_text(json.dumps(faults))
        nodes = {**nodes, "save": node("SaveLatent", samples=["sampler", 0], filename_prefix=self.base.name)}  # two may share a folder
        try:
            outputs = asyncio.run(asyncio.wait_for(run_and_interrupt(self.address, nodes, interrupt_after), 180))
            file = self.base / "output" / outputs["save"]["latents"][0]["filename"]
            return load(file.read_bytes())["latent_tensor"], outputs["report"]["text"][0]
        finally:
            for file in (self.base / "output").glob(f"{self.base.name}_*.latent"):  # saved by the stock node
                file.unlink()

    def clear(self) -> float:
        """Returns the server's resident memory in MiB, after it has let go of models and cached results."""
        asyncio.run(post(self.address, "/free", {"unload_models": True, "free_memory": True}))
        process, before = psutil.Process(self.process.pid), None
        while (now := process.memory_info().rss) != before:
            before = now
            time.sleep(0.3)
        return now / 2**20

    def files(self) -> list[str]:
        """Returns what lies in the folders for results and temporary files, folders too."""
        return sorted(str(path.relative_to(self.base)) for name in ("output", "temp") for path in (self.base / name).rglob("*"))


async def run_and_interrupt(address: str, nodes: dict, seconds: float | None) -> dict:
    running = asyncio.create_task(run_workflow(address, nodes))
    if seconds is not None:
        await asyncio.wait([running], timeout=seconds)
        await post(address, "/interrupt", {})
    return await running


async def post(address: str, path: str, body: dict) -> None:
    async with aiohttp.ClientSession(address) as session, session.post(path, json=body) as response:
        response.raise_for_status()


class Servers:
    """A steady server, and two that start when they are first needed: a victim, and a twin with the steady server's output folder."""

    def __init__(self, folder: Path):
        self.folder, self.steady = folder, Server(folder / "steady")

    @cached_property
    def victim(self) -> Server:
        return Server(self.folder / "victim")

    @cached_property
    def twin(self) -> Server:
        (self.folder / "twin").mkdir()
        link_folder(self.folder / "twin" / "output", self.steady.base / "output")
        return Server(self.folder / "twin")

    def stop(self) -> None:
        for server in self.running():
            server.stop()

    def running(self) -> list[Server]:
        return [self.steady, *(self.__dict__[name] for name in ("victim", "twin") if name in self.__dict__)]

    def last_words(self) -> str:
        """Returns the ends of the servers' logs."""
        logs = [(server.base / "server.log").read_text().splitlines() for server in self.running()]
        return "\n".join(line for log in logs for line in ["The server's log ends:", *log[-12:]])

    def check(self) -> None:
        """Raises Unexplained when a server died or files were left, after putting it right for the next prompt."""
        for server in self.running():
            if server.process.poll() is not None:
                server.stop()
                server.start()
                raise Unexplained(f"the server died with {server.process.returncode}")
            if left := server.files():
                for name in ("output", "temp"):
                    shutil.rmtree(server.base / name)
                    (server.base / name).mkdir()
                raise Unexplained(f"files were left: {left}")


def run_case(servers: Servers, case: Case) -> str:
    """Returns the outcome of a case. Raises Unexplained, WorkflowError, TimeoutError."""
    outcome = RUNS[case.fault](servers, case)
    servers.check()
    return outcome


def run_probe(server: Server, case: Case) -> tuple[Tensor, float]:
    """Returns a case's latent and the server's memory in MiB after it. Raises Unexplained.

    It runs twice: with what earlier prompts left in the server, and after the server has let go of that.
    """
    latent, _ = server.run(workflow(case))
    server.clear()
    again, _ = server.run(workflow(case))
    check(case, latent)
    compare(latent, again, 0)
    return again, server.clear()


def run_whole(servers: Servers, case: Case) -> str:
    latent, _ = servers.steady.run(workflow(case))
    check(case, latent)
    return "finished"


def run_interrupted(servers: Servers, case: Case) -> str:
    """An interrupt at any moment. A prompt that may resume is sent again, and must then finish."""
    try:
        latent, _ = servers.steady.run(workflow(case), interrupt_after=2.5 * case.draw)
    except WorkflowError as error:
        expect(str(error), "^interrupted$")
        if case.sampler["resume"]:
            run_whole(servers, case)
            return "interrupted, resumed"
        return "interrupted"
    check(case, latent)
    return "finished first"


def run_out_of_memory_once(servers: Servers, case: Case) -> str:
    call = int(case.draw * case.sampler["settings.steps"])
    latent, report = servers.steady.run(workflow(case), out_of_memory_at=[call])
    check(case, latent)
    expect(report, "Out of memory with")
    expected, _ = servers.steady.run(workflow(case))
    compare(latent, expected, TOLERANCE)
    return "finished"


def run_out_of_memory_above(servers: Servers, case: Case) -> str:
    """No call of the model may be larger than some share of the whole: that fits in smaller boxes, or is refused."""
    whole = case.source[0] * case.source[1] * prod(case.target)
    try:
        latent, report = servers.steady.run(workflow(case), most_cells=int((0.2 + case.draw) * whole))
    except WorkflowError as error:
        expect(str(error), "out of memory with the smallest box")
        if case.sampler["resume"]:
            run_whole(servers, case)
        return "refused"
    check(case, latent)
    return "finished in smaller boxes" if "Out of memory with" in report else "finished whole"


def run_bad(servers: Servers, case: Case) -> str:
    sampler = {key: value for key, value in case.sampler.items() if key not in ("positive", "negative")}
    nodes = workflow(replace(case, sampler={**sampler, "model": ["gvr", 0]}))
    wrong, answer = BAD_INPUTS[int(case.draw * len(BAD_INPUTS))]
    for name, inputs in wrong.items():
        if name in nodes:
            nodes[name]["inputs"].update(inputs)
        else:
            nodes[name] = inputs
    try:
        servers.steady.run(nodes)
    except WorkflowError as error:
        expect(str(error), f"(?s){answer}")
        return "refused"
    raise Unexplained(f"{wrong} was accepted")


def run_killed(servers: Servers, case: Case) -> str:
    """The victim kills itself, starts again and goes on; the result is that of the steady server, unbroken."""
    case = replace(case, sampler={**case.sampler, "resume": True})
    call = int(case.draw * case.sampler["settings.steps"])
    try:
        servers.victim.run(workflow(case), kill_at=call)
    except (WorkflowError, aiohttp.ClientError) as error:
        expect(str(error), "closed the connection|reset by peer|disconnected")
        servers.victim.process.wait(20)
    else:
        raise Unexplained(f"the server outlived call {call}")
    stepped = any(Path(name).name in STATES for name in servers.victim.files())
    servers.victim.stop()
    servers.victim.start()
    latent, _ = servers.victim.run(workflow(case))
    check(case, latent)
    expected, _ = servers.steady.run(workflow(case))
    compare(latent, expected, 0)
    return "resumed" if stepped else "killed in the first step"


def run_damaged(servers: Servers, case: Case) -> str:
    """An interrupted run, one of whose files is emptied, zeroed or cut: it is continued, and ends like the unbroken run."""
    case = replace(case, sampler={**case.sampler, "resume": True})
    try:
        latent, _ = servers.steady.run(workflow(case), interrupt_after=2.5 * case.draw)
        check(case, latent)
        return "finished first"
    except WorkflowError as error:
        expect(str(error), "^interrupted$")
    files = sorted((servers.steady.base / "output" / "simplegvr_resume").glob("*/*.safetensors"))
    if files:
        number = int(case.draw * 1000)
        path = files[number % len(files)]
        data = path.read_bytes()
        path.write_bytes((b"", bytes(len(data)), data[: len(data) // 2])[number % 3])
    latent, report = servers.steady.run(workflow(case))
    check(case, latent)
    if files:
        expect(report, "of an earlier run was damaged and is made again")
    expected, _ = servers.steady.run(workflow(case))
    compare(latent, expected, 0)
    return "continued" if files else "interrupted before the first file"


def run_emptied(servers: Servers, case: Case) -> str:
    """The temp folder is emptied all the time, as by other servers that start and end."""
    done = threading.Event()

    def empty() -> None:
        while not done.wait(0.02):
            shutil.rmtree(servers.steady.base / "temp", ignore_errors=True)

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        latent, _ = servers.steady.run(workflow(case))
    finally:
        done.set()
        thread.join()
    check(case, latent)
    return "finished"


def run_beside_another(servers: Servers, case: Case) -> str:
    """Another server starts and ends on the same base folder, while the prompt runs over and over."""

    def start_and_end() -> None:
        with serve(servers.steady.base, log=servers.steady.base / "other.log"):
            pass

    thread = threading.Thread(target=start_and_end)
    thread.start()
    try:
        while thread.is_alive():
            latent, _ = servers.steady.run(workflow(case))
            check(case, latent)
    finally:
        thread.join()
    return "finished"


def run_twice(servers: Servers, case: Case) -> str:
    """Two servers with one output folder run the same prompt with resume: both end like a run alone."""
    case = replace(case, sampler={**case.sampler, "resume": True})
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(server.run, workflow(case), seconds=0.1) for server in (servers.steady, servers.twin)]
    expected, _ = servers.steady.run(workflow(case))
    for each in running:
        latent, _ = each.result()
        check(case, latent)
        compare(latent, expected, 0)
    told = sum("Another process runs the same prompt with resume" in each.result()[1] for each in running)
    return "finished in two folders" if told else "finished one after the other"


RUNS = {
    "none": run_whole,
    "interrupt": run_interrupted,
    "out of memory once": run_out_of_memory_once,
    "out of memory above": run_out_of_memory_above,
    "bad input": run_bad,
    "killed server": run_killed,
    "damaged file": run_damaged,
    "emptied temp": run_emptied,
    "other server": run_beside_another,
    "two servers": run_twice,
}


def check(case: Case, latent: Tensor) -> None:
    """Raises Unexplained unless the latent is finite and exactly as large as asked."""
    wanted = (case.source[0], 16, case.source[1], *case.target)
    if latent.shape != wanted or not latent.isfinite().all():
        raise Unexplained(f"the latent is {tuple(latent.shape)}, finite: {bool(latent.isfinite().all())}; wanted {wanted}")


def compare(latent: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises Unexplained when the root mean square difference is above tolerance, in standard deviations of expected."""
    difference = ((latent - expected).square().mean().sqrt() / expected.std()).item()
    if difference > tolerance:
        raise Unexplained(f"the latent differs by {difference:.3g} standard deviations from the same prompt without the fault")


def expect(text: str, pattern: str) -> None:
    if not re.search(pattern, text):
        raise Unexplained(f"the answer does not match {pattern!r}: {text}")
