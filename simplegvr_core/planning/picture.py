"""A plan as a picture: the frame with its tiles, the clip with its segments, and the memory that each part takes."""

from PIL import Image, ImageDraw

from ..checks import amount
from ..latent_space import pixels
from .plan import Plan

WIDTH, HEIGHT, MARGIN = 960, 720, 40  # pixels
FRAME, CLIP, MEMORY = (72, 400), (470, 530), (590, 690)  # rows, from and to
TILE, SEGMENT = (66, 146, 198, 70), (35, 139, 69, 90)
PARTS = {"weights": "#9ecae1", "box": "#4292c6", "upsampler": "#74c476", "TinyVAE": "#fd8d3c"}


def draw_plan(plan: Plan) -> Image.Image:
    """Returns the picture, RGB. What two tiles or segments share is darker."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture, "RGBA")
    draw_frame(draw, plan)
    draw_clip(draw, plan)
    draw_memory(draw, plan)
    return picture


def write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, anchor: str = "la") -> None:
    draw.text((x, y), text, fill="black", font_size=16, anchor=anchor)


def draw_frame(draw: ImageDraw.ImageDraw, plan: Plan) -> None:
    """Draws the frame with its tiles, to scale."""
    _, _, height, width = plan.shape
    scale = min((WIDTH - 2 * MARGIN) / width, (FRAME[1] - FRAME[0]) / height)
    _, down, across = plan.counts
    tiles = f"{across} x {down} tiles of {pixels(plan.tile_size[1:])}" if across * down > 1 else "one tile"
    write(draw, MARGIN, MARGIN, f"frame of {pixels((height, width))} pixels: {tiles}")
    for box in plan.boxes:
        if box.start[0] == 0:
            _, top, left = box.start
            bottom, right = min(box.stop[1], height), min(box.stop[2], width)
            corners = MARGIN + scale * left, FRAME[0] + scale * top, MARGIN + scale * right, FRAME[0] + scale * bottom
            draw.rectangle(corners, fill=TILE, outline="#08519c")


def draw_clip(draw: ImageDraw.ImageDraw, plan: Plan) -> None:
    """Draws the clip with its segments, and a mark where each temporal unit begins."""
    frames, (top, bottom) = plan.shape[1], CLIP
    scale = (WIDTH - 2 * MARGIN) / frames
    along = plan.counts[0]
    segments = f"{along} segments of {plan.tile_size[0]}" if along > 1 else "one segment"
    write(
        draw, MARGIN, top - 28, f"clip of {frames} latent frames: {segments}" + (f"; marks every {plan.unit}, a unit" if plan.unit else "")
    )
    for box in plan.boxes:
        if box.start[1:] == (0, 0):
            draw.rectangle((MARGIN + scale * box.start[0], top, MARGIN + scale * box.stop[0], bottom), fill=SEGMENT, outline="#005a32")
    for frame in range(0, frames + 1, plan.unit or frames):
        draw.line((MARGIN + scale * frame, bottom, MARGIN + scale * frame, bottom + 8), fill="black")


def draw_memory(draw: ImageDraw.ImageDraw, plan: Plan) -> None:
    """Draws a bar for each phase of the run, and the line that none may cross."""
    phases = (
        {"upsampler": plan.upsampler_bytes},
        {"weights": plan.resident_bytes, "box": plan.dit_bytes},
        {"TinyVAE": plan.decode_bytes},
    )
    (top, bottom), left = MEMORY, MARGIN
    scale = (WIDTH - 2 * MARGIN) / max(plan.free_bytes, *(sum(phase.values()) for phase in phases))
    write(draw, MARGIN, top - 28, f"memory, counted: upsampling, sampling, decoding; the line is the {amount(plan.free_bytes)} there are")
    row = (bottom - top) / len(phases)
    for i, phase in enumerate(phases):
        x, y = left, top + i * row
        for name, size in phase.items():
            draw.rectangle((x, y, x + scale * size, y + row - 6), fill=PARTS[name])
            x += scale * size
        label = " + ".join(f"{name} {amount(size)}" for name, size in phase.items())
        room = draw.textlength(label, font_size=16) < WIDTH - MARGIN - x - 8
        write(draw, x + 8 if room else left + 8, y + row / 2 - 3, label, "lm")
    limit = left + scale * plan.free_bytes
    draw.line((limit, top - 6, limit, bottom), fill="#d62728", width=3)
