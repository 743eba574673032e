"""A node for tests and the soak, never installed for users: a MODEL that runs out of memory, kills its process or dawdles.

What goes wrong stands in faults.json in ComfyUI's input folder, so that a workflow with a fault and one without are the same:
out_of_memory_at, calls of the model that fail, counted from 0 in each run; most_cells, calls with more latent cells (batch
included) fail; kill_at, the call that kills the process; seconds, the sleep before each call.
"""

import json
import time
from itertools import count
from pathlib import Path

import folder_paths
import psutil
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io

NONE = {"out_of_memory_at": [], "most_cells": float("inf"), "kill_at": None, "seconds": 0}


class SimpleGVRTestFaults(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="SimpleGVRTestFaults", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()])

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> int:
        return time.monotonic_ns()  # never from the cache

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        path = Path(folder_paths.get_input_directory()) / "faults.json"
        faults = NONE | (json.loads(path.read_text()) if path.exists() else {})
        calls = count()

        def call_model(executor, x, *args, **kwargs):
            call, cells = next(calls), x[:, 0].numel()
            time.sleep(faults["seconds"])
            if call == faults["kill_at"]:
                psutil.Process().kill()
            if call in faults["out_of_memory_at"] or cells > faults["most_cells"]:
                raise torch.OutOfMemoryError(f"simulated at call {call} of the model, {cells} latent cells")
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "faults", call_model)
        return io.NodeOutput(model)


class FaultsExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SimpleGVRTestFaults]


async def comfy_entrypoint() -> FaultsExtension:
    return FaultsExtension()
