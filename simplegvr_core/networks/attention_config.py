"""Which tokens attend to which: the settings of attention over a grid of video tokens."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..tiling import Tiling, aligned_tiling
from .layers import uncompiled
from .windows import TokenLayout, Windows, cut_windows, token_order, unit_lengths

KINDS = ("full", "swin", "sparse_local")
Scope = Literal["unit", "video"]


@dataclass(frozen=True)
class AttentionConfig:
    """Which tokens attend to which. The defaults are the paper's, except for scope, which is "video" there.

    Args:
        kind: "full"; "swin", windows that shift in every other block; or "sparse_local", a window and its top_k most
            similar others.
        window: tokens of a window along T, H, W.
        top_k: number of other windows that each window attends to.
        unit: latent frames of a temporal unit; the last one of a video is shorter or longer by up to half a unit. Tokens attend
            only inside their unit, unless scope is "video". None is the whole video.
        radius: how many windows away, along height and width, the other windows may be. None is anywhere.
        scope: where the other windows of "sparse_local" are: in the same "unit", or anywhere in the "video", also in future frames.
    """

    kind: str = "sparse_local"
    window: tuple[int, int, int] = (1, 12, 9)
    top_k: int = 1
    unit: int | None = 5
    radius: int | None = None
    scope: Scope = "unit"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"attention kind is {self.kind!r}, wanted one of {', '.join(KINDS)}")
        if min(self.window) < 1 or self.top_k < 0 or (self.unit is not None and self.unit < 1):
            raise ValueError(
                f"attention has window {self.window}, top_k {self.top_k}, unit {self.unit}: wanted sides and unit >= 1, top_k >= 0"
            )
        if self.scope not in get_args(Scope):
            raise ValueError(f"attention scope is {self.scope!r}, wanted one of {', '.join(get_args(Scope))}")
        if self.scope == "video" and self.kind != "sparse_local":
            raise ValueError(f"attention scope is 'video', and kind {self.kind!r} selects no windows: wanted kind sparse_local")

    @property
    def window_major(self) -> bool:
        """Whether window-major order of tokens serves it best: its windows never move."""
        return self.kind == "sparse_local"

    @property
    def alignment(self) -> tuple[int, int, int]:
        """Latent pixels along T, H, W at whose multiples a box begins, so that its units and windows are the whole latent's."""
        frames, rows, columns = (1, 1, 1) if self.kind == "full" else self.window
        return self.unit or frames, 2 * rows, 2 * columns

    def tiling(self, wanted: tuple[int | None, int | None, int | None]) -> Tiling:
        """Returns the tiling whose boxes are at least as large as wanted, in latent pixels along T, H, W; see aligned_tiling."""
        return aligned_tiling(wanted, self.alignment)

    def unit_lengths(self, frames: int, block: int) -> list[int]:
        """Returns the latent frames of each temporal unit in one block. Odd blocks shift the units."""
        return unit_lengths(frames, self.unit or frames, block % 2 == 1)

    @uncompiled
    def token_order(self, grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor | None:
        """Returns (L,) raster numbers of the tokens in the order that serves it best, None for raster order."""
        return token_order(grid, self.window).to(device, copy=True) if self.window_major else None

    def windows(self, layout: TokenLayout, block: int, device: torch.device | None = None) -> Windows:
        """Returns the windows of one block. None reaches across two of its temporal units.

        Args:
            layout: of the tokens.
            block: number of the block, from 0. Odd blocks shift the units, and the windows of "swin".
            device: where to return them, by default the CPU.
        """
        windows = cut_windows(
            layout.grid,
            self.window,
            tuple(self.unit_lengths(layout.grid[0], block)),
            shifted=self.kind == "swin" and block % 2 == 1,
            window_major=self.window_major and layout.ordered,
            whole_scope=self.scope == "video",
            num_condition_tokens=layout.num_condition_tokens,
        )
        return layout.on_device(windows, device)
