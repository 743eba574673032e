"""Results of `simplegvr ablate` under the names of the paper's rows."""

from dataclasses import dataclass
from pathlib import Path

from ..files import CLIPS, REPO, read_json
from .ablate import Ablate, verdict
from .page import Rows

COLUMNS = {"psnr": "PSNR, dB", "st_lpips": "ST-LPIPS", "warping_error": "warping error, 1e-3"}
SMOKE = "models of ten steps, which mean nothing"
MISSING = (
    "it takes models trained each way: train small ones with `simplegvr ablate` and give its folder with --ablation, "
    "or look at the structure alone with --smoke-ablation"
)


@dataclass(frozen=True)
class Axis:
    """An axis of `simplegvr ablate`.

    Attributes:
        name: Its name there.
        variants: The paper's name of each of its variants.
    """

    name: str
    variants: dict[str, str]


AXES = {
    "figure-6": (Axis("timesteps", {"uniform": "uniform", "detail-aware": "detail-aware"}),),
    "figure-7": (
        Axis("noise range", {"small": "trained with 0 to 0.3", "middle": "trained with 0.3 to 0.6", "large": "trained with 0.6 to 0.9"}),
    ),
    "upsampler-ablation": (
        Axis(
            "upsampler",
            {
                "temporal expansion": "upsampler and channel concatenation",
                "channel expansion": "channel expansion only",
                "bilinear": "latent interpolation and channel concatenation",
            },
        ),
        Axis("condition", {"tokens": "token concatenation"}),
    ),
    "degradation-ablation": (
        Axis("degradation", {"classical": "RealBasicVSR only", "+ flow-based": "+ flow-based", "+ model-guided": "+ model-guided"}),
    ),
    "table-2": (Axis("attention", {"full": "full", "swin": "swin", "sparse local": "sparse local"}),),
}


def smoke_ablation(out: Path, vae: Path, t2v: Path) -> Path:
    """Returns the folder of an ablation of ten steps on the bundled clips, which has every row and no meaning.

    Args:
        out: That folder.
        vae: TinyVAE of the latents.
        t2v: Text-to-video checkpoint for the model-guided degradation.
    """
    Ablate(CLIPS, REPO / "tests" / "clips", out, t2v, vae, seeds=1, steps=10, clips=1).run()
    return out


def read_ablation(folder: Path) -> dict:
    """Returns the results of `simplegvr ablate` in a folder. Raises FileNotFoundError when there are none."""
    path = folder / "ablation.json"
    if not path.is_file():
        raise FileNotFoundError(f"--ablation {folder} has no ablation.json: give the --out of `simplegvr ablate`")
    return read_json(path, "run `simplegvr ablate` again")


def ablation_rows(item: str, table: dict) -> Rows:
    """Returns the rows of one of the paper's items: means over the seeds.

    Args:
        item: Name of the item in paper.json.
        table: As Ablate.run returns it.
    """
    found: dict[str, dict[str, float]] = {}
    for axis in AXES.get(item, ()):
        variants = table.get(axis.name, {}).get("variants", {})
        for variant, name in axis.variants.items():
            if variant in variants:
                found[name] = {COLUMNS[metric]: column["mean"] for metric, column in variants[variant].items()}
    return found


def verdicts(item: str, table: dict) -> str:
    """Returns a sentence for each axis of an item: whether the paper's order held. table: as Ablate.run returns it."""
    axes = [table[axis.name] | {"name": axis.name} for axis in AXES[item] if axis.name in table]
    return " ".join(f"Axis {axis['name']}: paper's order {axis['paper']}; here: {verdict(axis)}." for axis in axes)
