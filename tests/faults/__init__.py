"""A node for tests and the soak, never installed for users: a MODEL that runs out of memory, kills its process or dawdles."""

import os
import signal
import time
from itertools import count

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io


class SimpleGVRTestFaults(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRTestFaults",
            inputs=[
                io.Model.Input("model"),
                io.String.Input("out_of_memory_at", default="", tooltip="Calls of the model that fail, from 0: 7,8"),
                io.Int.Input("most_cells", default=0, min=0, tooltip="Calls with more latent cells, batch included, fail. 0: none."),
                io.Int.Input("kill_at", default=-1, min=-1, tooltip="Call that kills the process. -1: none."),
                io.Float.Input("seconds", default=0.0, min=0.0, tooltip="Sleep before each call."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> int:
        return time.monotonic_ns()  # never from the cache: calls are counted from 0 in each run

    @classmethod
    def execute(cls, model, out_of_memory_at: str, most_cells: int, kill_at: int, seconds: float) -> io.NodeOutput:
        failing = {int(call) for call in out_of_memory_at.split(",") if call}
        calls = count()

        def call_model(executor, x, *args, **kwargs):
            call, cells = next(calls), x[:, 0].numel()
            time.sleep(seconds)
            if call == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if call in failing or cells > most_cells > 0:
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
