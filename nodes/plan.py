"""SimpleGVR Plan: what a run will take, and the segments and tiles that fit, before it starts."""

from dataclasses import replace

from comfy_api.latest import io, ui

from ..simplegvr_core.latent_space import SPATIAL_FACTOR
from ..simplegvr_core.planning.picture import draw_plan
from .host.bridge import CATEGORY, latent_samples, size_input, target_size, to_image, upsampler_network
from .host.planning import plan_run, seconds_per_operation
from .sampler import sampling_config, settings_input, takes_no_condition


class SimpleGVRPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRPlan",
            display_name="SimpleGVR Plan",
            category=CATEGORY,
            description="Says before sampling what SimpleGVR Sampler will take: the segments and tiles that fit the memory with the "
            "least work, the bytes of every part, operations, and on request the time. Bytes are counted from the networks.",
            search_aliases=["out of memory", "VRAM", "memory estimate", "tile size", "how long"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample: SimpleGVR, or a stock Wan 2.1 model."),
                io.Latent.Input("latent", tooltip="The latent that will be super-resolved; only its size is read."),
                size_input(),
                settings_input(),
                io.DynamicCombo.Input(
                    "memory",
                    tooltip="free: what ComfyUI could free on the model's device now. custom: of another machine, for example.",
                    options=[
                        io.DynamicCombo.Option("free", []),
                        io.DynamicCombo.Option(
                            "custom",
                            [
                                io.Float.Input(
                                    "gigabytes", default=12.0, min=0.1, max=10000.0, step=0.1, tooltip="Memory for weights and all else."
                                )
                            ],
                        ),
                    ],
                ),
                io.Boolean.Input(
                    "trial",
                    default=False,
                    tooltip="Also run the model on one small box, twice, and forecast the sampling time from it.",
                ),
                io.LatentUpscaleModel.Input(
                    "upsampler", optional=True, tooltip="From Load SimpleGVR Upsampler. Left open: one of default widths is counted."
                ),
            ],
            outputs=[
                io.Int.Output(display_name="segment", tooltip="Latent frames at a time, for SimpleGVR Sampler's tiling; 0 is all."),
                io.Int.Output(display_name="tile_width", tooltip="Pixels at a time, for SimpleGVR Sampler's tiling; 0 is the whole width."),
                io.Int.Output(
                    display_name="tile_height", tooltip="Pixels at a time, for SimpleGVR Sampler's tiling; 0 is the whole height."
                ),
                io.String.Output(display_name="report", tooltip="The plan in words."),
                io.Image.Output(
                    display_name="picture", tooltip="The frame with its tiles, the clip with its segments, the memory by part."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, latent, size, settings, memory, trial, upsampler=None) -> io.NodeOutput:
        samples = latent_samples(latent, cls)
        sampling = sampling_config(model, settings, takes_no_condition(model, cls))
        free_bytes = int(1e9 * memory["gigabytes"]) if memory["memory"] == "custom" else None
        target = target_size(size, samples, cls)
        if upsampler is not None:
            upsampler_network(upsampler, cls)
        try:
            plan = plan_run(model, upsampler, samples.shape, target, sampling, free_bytes)
        except ValueError as error:
            raise ValueError(f"SimpleGVR Plan: {error}") from error
        if trial:
            plan = replace(plan, seconds_per_operation=seconds_per_operation(model, plan))
        segment, rows, columns = (cells or 0 for cells in plan.tiling.size)
        report, picture = plan.text(), to_image(draw_plan(plan))[None]
        shown = {**ui.PreviewText(report).as_dict(), **ui.PreviewImage(picture, cls=cls).as_dict()}
        return io.NodeOutput(segment, columns * SPATIAL_FACTOR, rows * SPATIAL_FACTOR, report, picture, ui=shown)
