"""The paper's tables and figures for given weights: `simplegvr paper --out DIR`.

The page has each beside the paper's own numbers, which are data in paper.json. The defaults, with the bundled gvr_tiny, take
minutes on a CPU. Finished items are saved, so a killed run resumes when the same command is run again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from ..checks import check_folder
from ..files import write_text
from ..training.build_pairs import flatten
from .ablation import AXES, MISSING, SMOKE, ablation_rows, read_ablation, smoke_ablation, verdicts
from .bench import Bench, Options
from .figures import FIGURES
from .page import PAPER, Here, write_page
from .tables import QUALITIES, TABLES, unmeasured

MEASURED: dict[str, Callable[[Bench, Path], Here]] = FIGURES | TABLES


@dataclass(frozen=True)
class Paper(Options):
    """Makes the paper's tables and figures with the weights given, and one page of them: paper.md, paper.html, paper.json."""

    out: Path = Path("out/paper")
    """Folder for the page, its pictures and the saved results."""
    only: tuple[str, ...] = tuple(PAPER["items"])
    """Items to make. Items finished earlier with the same options are on the page too."""
    ablation: Path | None = None
    """Folder of `simplegvr ablate`'s results, for items that compare models trained in different ways."""
    smoke_ablation: bool = False
    """Without --ablation, train such models for ten steps: this shows the structure; the values have no meaning."""

    def run(self) -> dict:
        """Makes the items and the page.

        Returns:
            {item: {"paper": the paper's own numbers, "groups": ours, "note", "missing", "pictures"}}.

        Raises:
            ValueError: Options are not valid.
            FileNotFoundError: A file or folder is missing.
        """
        self.check()
        bench = Bench(Options(**{field.name: getattr(self, field.name) for field in fields(Options)}), self.out)
        ablations = self.ablations()
        with torch.inference_mode():
            for name in tqdm([name for name in self.only if name in MEASURED], unit="item"):
                bench.computed_once(name, lambda folder, name=name: asdict(MEASURED[name](bench, folder)))
        items = {name: {"paper": paper, **self.item(name, bench, ablations)} for name, paper in PAPER["items"].items()}
        write_page(self.out, items, self.command(), f"{self.model.stem} and {self.upsampler.stem}")
        write_text(self.out / "paper.json", json.dumps(items, indent=1))
        return items

    def check(self) -> None:
        """Raises ValueError or OSError for options that would fail later."""
        super().check()
        if unknown := set(self.only) - PAPER["items"].keys():
            raise ValueError(f"--only has unknown {', '.join(sorted(unknown))}; known are {', '.join(PAPER['items'])}")
        check_folder(self.out)

    def ablations(self) -> dict:
        """Returns `simplegvr ablate`'s results, {} when they are neither given nor asked for."""
        if self.ablation is not None:
            return read_ablation(self.ablation)
        if self.smoke_ablation:
            return read_ablation(smoke_ablation(self.out / "smoke_ablation", self.vae, self.t2v))
        return {}

    def item(self, name: str, bench: Bench, ablations: dict) -> dict:
        """Returns an item's part of the page: {"note", "groups": rows by their owner, "missing": columns by reason, "pictures"}."""
        here, columns = bench.finished(name), PAPER["items"][name]["columns"]
        notes, groups, missing, pictures = [], {}, {}, []
        if here:
            notes, groups, missing = [here["differs"]], {f"here, {self.model.stem}": here["rows"]}, here["missing"]
            pictures = [(f"{name}/{file}", caption) for file, caption in here["pictures"].items()]
        elif name in MEASURED:
            notes = [f"Not made with these options yet: `--only {name}`."]
        if ablated := ablation_rows(name, ablations):
            groups[f"here, {'small models' if self.ablation else SMOKE}"] = ablated
            notes.append(verdicts(name, ablations))
        elif name in AXES:
            missing = missing | {"models trained each way": MISSING}
        if groups:
            measured = {column for rows in groups.values() for row in rows.values() for column in row}
            absent = [column for column in columns if column not in measured]
            missing = {column: unmeasured(column) if column in QUALITIES else f"it takes `--only {name}`" for column in absent} | missing
        reasons = {reason: [key for key in missing if missing[key] == reason] for reason in missing.values()}
        return {"note": " ".join(notes), "groups": groups, "missing": reasons, "pictures": pictures}

    def command(self) -> str:
        """Returns the command of this page: the options that are not the defaults, with the last name of each path."""
        default = flatten(asdict(Paper()))
        words = ["python3 scripts/run.py paper --out DIR"]
        for name, value in flatten(asdict(self)).items():
            if name not in ("out", "only") and value != default.get(name):
                values = value if isinstance(value, tuple) else (value,) * (value is not True)
                words += ["--" + name.replace("_", "-"), *(v.name if isinstance(v, Path) else str(v) for v in values)]
        return " ".join(words)


def main(arguments: Sequence[str]) -> dict:
    """Makes the page that the command line asks for and returns Paper.run's result."""
    run = tyro.cli(Paper, prog="simplegvr paper", args=arguments)
    results = run.run()
    print((run.out / "paper.md").read_text(encoding="utf-8"))
    return results
