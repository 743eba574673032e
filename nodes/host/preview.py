"""The preview of a clip while it is sampled: several of its frames, in motion, as ComfyUI's settings ask."""

import time
from io import BytesIO
from typing import cast

from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from .video_decoder import clip_previewer

PICTURES = 12  # of a clip, at most
SECONDS = 0.125  # that each is seen
LOOP = PICTURES * SECONDS  # so long, at least, one preview is up before the next


class Animation(PngImageFile):
    """The first picture of an animated PNG, which saves as all of them: ComfyUI's server saves a preview to send it."""

    def __init__(self, pictures: list[Image.Image]):
        file = BytesIO()
        pictures[0].save(
            file, "PNG", save_all=True, append_images=pictures[1:], duration=1000 * SECONDS, default_image=False, compress_level=1
        )
        self.data = file.getvalue()
        super().__init__(BytesIO(self.data))

    def save(self, fp, format=None, **options) -> None:
        fp.write(self.data)


class ClipPreview:
    """The newest picture of each of a few latent frames, evenly over the clip; nothing with previews turned off."""

    def __init__(self, model, num_frames: int):
        self.previewer = clip_previewer(model.load_device, model.model.latent_format)
        shown = min(PICTURES, num_frames)
        self.frames = [i * (num_frames - 1) // max(1, shown - 1) for i in range(shown)] if self.previewer else []
        self.pictures: dict[int, Image.Image] = {}
        self.side, self.due = 0, 0.0

    def add(self, first: int, z_0: Tensor) -> None:
        """Decodes the frames to show. z_0: (B, 16, t, H, W), predicted clean latent of the clip's frames from first on."""
        if self.previewer is None:
            return
        for frame in self.frames:
            if first <= frame < first + z_0.shape[2]:
                z = z_0[:, :, frame - first : frame - first + 1]
                preview = cast("tuple[str, Image.Image, int] | None", self.previewer.decode_latent_to_preview_image("JPEG", z))
                if preview is not None:  # another pack's previewer may have shown it itself
                    _, self.pictures[frame], self.side = preview

    def image(self, last: bool) -> tuple | None:
        """Returns what ComfyUI's progress bar takes as a preview, None where none is due. last: there will be no other."""
        if not self.pictures or not (last or time.monotonic() >= self.due):
            return None
        self.due = time.monotonic() + LOOP
        pictures = [self.pictures[frame].copy() for frame in sorted(self.pictures)]
        if len(pictures) == 1:
            return "JPEG", pictures[0], self.side
        for picture in pictures:
            picture.thumbnail((self.side // 2, self.side // 2))
        return "PNG", Animation(pictures), None
