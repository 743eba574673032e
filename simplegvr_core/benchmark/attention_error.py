"""The error of sparse attention in a model that was trained with dense attention: `simplegvr attention-error --model FILE`.

Both attentions get the same queries, keys and values in every block of a forward pass of a noised clip; then whole forward passes are
compared. Errors are relative: the L2 norm of the difference over that of the dense result.

T, H, W tokens of the grid along time, height and width; sigma in [0, 1]: 1 is noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
import tyro
from torch import Tensor

from ..files import CLIPS, GVR_TINY_T2V, GVR_TINY_VAE
from ..flow import interpolate
from ..latent_space import LATENT_CHANNELS, token_grid
from ..networks.attention import AttentionConfig, attend, full_attention
from ..networks.checkpoint import load_strict
from ..networks.dit import SimpleGVRDiT, read_dit
from ..networks.layers import default_device
from ..networks.wan_vae import load_vae
from ..networks.windows import TokenLayout
from ..planning.flops import share_of_dense
from ..video.frames import limit_height, to_video
from ..video.read import read_video

DENSE = AttentionConfig(kind="full", unit=None)
CANDIDATES = {
    "1 x 12 x 9, top 1, unit": AttentionConfig(),
    "1 x 12 x 9, top 1, video": AttentionConfig(scope="video"),
    "1 x 12 x 9, top 7, unit": AttentionConfig(top_k=7),
    "1 x 12 x 9, top 7, video": AttentionConfig(top_k=7, scope="video"),
    "1 x 6 x 6, top 23, unit": AttentionConfig(window=(1, 6, 6), top_k=23),
    "1 x 6 x 6, top 23, video": AttentionConfig(window=(1, 6, 6), top_k=23, scope="video"),
    "5 x 12 x 9, own window": AttentionConfig(window=(5, 12, 9), top_k=0),
    "5 x 12 x 9, top 1, video": AttentionConfig(window=(5, 12, 9), top_k=1, scope="video"),
    "5 x 6 x 6, top 3, video": AttentionConfig(window=(5, 6, 6), top_k=3, scope="video"),
    "full in units of 5": AttentionConfig(kind="full", unit=5),
}


@torch.inference_mode()
def attention_errors(model: SimpleGVRDiT, z_t: Tensor, sigma: float, candidates: dict[str, AttentionConfig]) -> dict[str, dict[str, float]]:
    """Returns, for each attention, its errors and its cost: {name: {"attention", "velocity", "share"}}.

    "attention" is the mean over the blocks of the error of one attention; "velocity" that of the model's output; "share" the query-key
    pairs over those of dense attention, mean of an even and an odd block.

    Args:
        model: Trained with dense attention, for the null prompt.
        z_t: Noised latent (1, 16, T, 2H, 2W).
        sigma: Its noise level.
        candidates: Attentions by name.
    """
    errors: dict[str, list[float]] = {name: [] for name in candidates}
    timestep, null = torch.full((1,), 1000 * sigma).to(z_t), z_t.new_zeros(1, 1, model.config.text_dim)

    def compare(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, block: int) -> Tensor:
        dense = full_attention(q, k, v)
        for name, config in candidates.items():
            errors[name].append(relative_error(attend(q, k, v, layout, config, block), dense))
        return dense

    velocity = model(z_t, timestep, null, compare)
    grid = token_grid((z_t.shape[2], z_t.shape[3], z_t.shape[4]))
    return {
        name: {
            "attention": mean(errors[name]),
            "velocity": relative_error(model(z_t, timestep, null, partial(attend, config=config)), velocity),
            "share": mean(share_of_dense(config, grid, block) for block in (0, 1)),
        }
        for name, config in candidates.items()
    }


def relative_error(x: Tensor, exact: Tensor) -> float:
    return float((x - exact).norm() / exact.norm())


@dataclass(frozen=True)
class AttentionError:
    """Measures what sparse attention changes in a text-to-video model that was trained with dense attention."""

    model: Path = GVR_TINY_T2V
    """Text-to-video model: stock Wan 2.1, or one of ours with 16 input channels."""
    vae: Path = GVR_TINY_VAE
    """Autoencoder of its latents."""
    clip: Path = CLIPS / "demo_original.mp4"
    """Video whose latent is noised."""
    num_frames: int = 81
    """Video frames, at most those of the clip."""
    height: int = 324
    """Height in pixels to which taller video is reduced."""
    sigma: tuple[float, ...] = (0.6, 0.3)
    """Noise levels."""
    random: bool = False
    """Replace the weights by random ones."""
    device: str = default_device()
    """Device of the networks: cpu, cuda, cuda:1 and so on."""

    def run(self) -> dict:
        """Returns attention_errors by noise level. Raises ValueError when a file cannot be used."""
        config, weights = read_dit(self.model)
        if config.in_dim != LATENT_CHANNELS:
            raise ValueError(f"--model {self.model} takes {config.in_dim} channels, a text-to-video model {LATENT_CHANNELS}")
        model = SimpleGVRDiT(config, DENSE)
        load_strict(model, weights, self.model)
        if self.random:
            randomize(model, torch.Generator().manual_seed(0))
        model = model.eval().to(self.device)
        images, _ = read_video(self.clip, self.num_frames)
        video = to_video(torch.stack([limit_height(image, self.height) for image in images]))
        with torch.inference_mode():
            z_0 = load_vae(self.vae).to(self.device).encode(video.to(self.device))
        noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0)).to(z_0)
        return {
            f"{sigma:g}": attention_errors(model, interpolate(z_0, noise, torch.tensor(sigma).to(z_0)), sigma, CANDIDATES)
            for sigma in self.sigma
        }


@torch.no_grad()
def randomize(model: SimpleGVRDiT, generator: torch.Generator) -> None:
    """Replaces all weights by normal ones of variance 1 / inputs, so that no block is silent; norms get weights near 1."""
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.1 * values)


def as_markdown(results: dict) -> str:
    """Returns a table of AttentionError.run's results in Markdown."""
    lines = ["| sigma | attention | pairs of dense, % | error of attention, % | error of the velocity, % |", "|---|---|---|---|---|"]
    for sigma, rows in results.items():
        for name, row in rows.items():
            lines.append(f"| {sigma} | {name} | {100 * row['share']:.2g} | {100 * row['attention']:.1f} | {100 * row['velocity']:.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> dict:
    """Measures as the command line asks and returns AttentionError.run's results."""
    results = tyro.cli(AttentionError, prog="simplegvr attention-error", args=arguments).run()
    print(as_markdown(results))
    return results
