"""SimpleGVR Plan: what a run will take, and the segments and tiles that fit, before it starts."""

from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..simplegvr_core.latent_space import SPATIAL_FACTOR
from ..simplegvr_core.planning.picture import draw_plan
from ..simplegvr_core.planning.plan import Job
from .host.bridge import CATEGORY, latent_samples, named_choices, refuse, target_size, to_image
from .host.inputs import settings_input, size_input
from .host.planning import plan_run, seconds_per_operation
from .host.preflight import Request, missing
from .host.sampling import sampling_config


class SimpleGVRPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRPlan",
            display_name="SimpleGVR Plan",
            category=CATEGORY,
            description="Predicts what SimpleGVR Sampler needs: the segments and tiles that fit the memory with the least work, the "
            "bytes of each part, the operations and, on request, the time. Bytes are counted from the networks.",
            search_aliases=["out of memory", "VRAM", "memory estimate", "tile size", "how long"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="Model that will sample: SimpleGVR, or a stock Wan 2.1 model."),
                io.Latent.Input("latent", tooltip="Latent that will be super-resolved; only its size is used."),
                size_input(),
                settings_input(),
                io.DynamicCombo.Input(
                    "memory",
                    tooltip="free: the memory that ComfyUI can free on the model's device. custom: a number, for example of another "
                    "machine.",
                    options=[
                        io.DynamicCombo.Option("free", []),
                        io.DynamicCombo.Option(
                            "custom",
                            [
                                io.Float.Input(
                                    "gigabytes",
                                    default=12.0,
                                    min=0.1,
                                    max=10000.0,
                                    step=0.1,
                                    tooltip="Memory for weights and activations, in gigabytes.",
                                )
                            ],
                        ),
                    ],
                ),
                io.Boolean.Input(
                    "trial",
                    default=False,
                    tooltip="Runs the model twice on one small box and predicts the sampling time from it.",
                ),
                io.LatentUpscaleModel.Input(
                    "upsampler",
                    optional=True,
                    tooltip="Upsampler from Load SimpleGVR Upsampler. Not connected: one of default width is counted.",
                ),
            ],
            outputs=[
                io.Int.Output(display_name="segment", tooltip="Latent frames per segment, for the tiling of SimpleGVR Sampler; 0 is all."),
                io.Int.Output(
                    display_name="tile_width", tooltip="Tile width in pixels, for the tiling of SimpleGVR Sampler; 0 is the whole width."
                ),
                io.Int.Output(
                    display_name="tile_height", tooltip="Tile height in pixels, for the tiling of SimpleGVR Sampler; 0 is the whole height."
                ),
                io.String.Output(display_name="report", tooltip="The plan as text."),
                io.Image.Output(
                    display_name="picture", tooltip="The frame with its tiles, the video with its segments, and the memory of each part."
                ),
            ],
        )

    @classmethod
    @named_choices
    def execute(
        cls,
        model: ModelPatcher,
        latent: dict,
        size: dict,
        settings: dict,
        memory: dict,
        trial: bool,
        upsampler: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        samples = latent_samples(latent, cls)
        sampling = sampling_config(model, settings, cls)
        free_bytes = int(1e9 * memory["gigabytes"]) if memory["memory"] == "custom" else None
        target = target_size(size, samples, cls, upsampler)
        job = Job((len(samples), samples.shape[2], samples.shape[3], samples.shape[4]), target, sampling)
        try:
            plan = plan_run(model, upsampler, job, free_bytes)
        except ValueError as error:
            raise refuse(cls, str(error)) from error
        if trial:
            plan = replace(plan, seconds_per_operation=seconds_per_operation(model, plan))
        segment, rows, columns = (side or 0 for side in plan.tiling.size)
        request = Request(model, sampling, (len(samples), samples.shape[2], *target))
        report, picture = "\n".join([plan.text(), *missing(request, cls)]), to_image(draw_plan(plan))[None]
        shown = {**ui.PreviewText(report).as_dict(), **ui.PreviewImage(picture, cls=cls).as_dict()}
        return io.NodeOutput(segment, columns * SPATIAL_FACTOR, rows * SPATIAL_FACTOR, report, picture, ui=shown)
