"""SimpleGVR Compare: two videos, one over the other, in the node; web/js/compare.js plays them."""

from comfy_api.latest import io

from .host.bridge import CATEGORY, rgb_frames
from .host.comparison import comparison


class SimpleGVRCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRCompare",
            display_name="SimpleGVR Compare",
            category=CATEGORY,
            description="Plays two videos in the same place, in step: drag the line between before and after, zoom in, step through "
            "the frames. A smaller before is resized to the size of after.",
            search_aliases=["compare video", "before after", "wipe", "slider", "A/B"],
            is_output_node=True,
            inputs=[
                io.Image.Input("before", tooltip="Video on the left of the line, for example the decoded low-resolution video."),
                io.Image.Input(
                    "after",
                    tooltip="Video on the right of the line, for example the super-resolved video. The longer video is cut at its end.",
                ),
                io.Float.Input("fps", default=16.0, min=1.0, max=240.0, step=0.01, tooltip="Playback speed in frames per second."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, before, after, fps) -> io.NodeOutput:
        return io.NodeOutput(ui=comparison(rgb_frames(before, cls, "before"), rgb_frames(after, cls, "after"), fps))
