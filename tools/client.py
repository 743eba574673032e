"""A client of a ComfyUI server: runs an API workflow, tells its progress, returns its outputs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp


class WorkflowError(Exception):
    """The server rejected or failed a workflow; the message is its own."""


class WorkflowRejectedError(WorkflowError):
    """The server cannot run the workflow: a model or a node is missing, an input is wrong."""


@dataclass(frozen=True)
class Event:
    """What the server says while it works. kind: "executing" (a node starts; node is None at the end) or "progress"."""

    kind: str
    node: str | None
    value: int = 0
    maximum: int = 0


async def run_workflow(address: str, workflow: dict, on_event: Callable[[Event], None] = lambda event: None) -> dict:
    """Returns the outputs of an API workflow by node id. Raises WorkflowError when the server rejects, stops or fails it."""
    client_id = "simplegvr"
    async with aiohttp.ClientSession(address) as session, session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket:
        async with session.post("/prompt", json={"prompt": workflow, "client_id": client_id}) as response:
            answer = await response.json()
        if "prompt_id" not in answer:
            raise WorkflowRejectedError(f"the server rejected the workflow: {json.dumps(answer, indent=1)}")
        prompt_id = answer["prompt_id"]
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            data = event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            match event["type"]:
                case "executing" if data["node"] is None:  # the history is complete from here on
                    on_event(Event("executing", None))
                    async with session.get(f"/history/{prompt_id}") as response:
                        return (await response.json())[prompt_id]["outputs"]
                case "executing":
                    on_event(Event("executing", data["node"]))
                case "progress":
                    on_event(Event("progress", data["node"], data["value"], data["max"]))
                case "execution_error":
                    raise WorkflowError(f"{data['node_type']}: {data['exception_message']}")
                case "execution_interrupted":
                    raise WorkflowError("interrupted")
        raise WorkflowError("the server closed the connection: see its log")


def output_files(outputs: dict, folder: Path) -> list[Path]:
    """Returns the files below the server's output folder that a workflow's outputs name, in order."""
    return [
        folder / file["subfolder"] / file["filename"]
        for output in outputs.values()
        for file in output.get("images", [])
        if file["type"] == "output"
    ]


async def download(address: str, file: dict) -> bytes:
    """Returns the content of a file that a workflow's outputs name, from a server anywhere."""
    async with aiohttp.ClientSession(address, raise_for_status=True) as session, session.get("/view", params=file) as response:
        return await response.read()
