"""The prompts of a text-to-video model's clips, from the manifest of scripts/aigc100.py."""

import json
from pathlib import Path


def read_prompts(clips: Path, names: list[str]) -> dict[str, str]:
    """Returns the prompt of each clip that manifest.json has, in or beside the clips' folder; {} without such a file.

    Args:
        clips: Folder of the clips.
        names: Their names.

    Raises:
        ValueError: The manifest is not one of scripts/aigc100.py.
    """
    path = next((path for path in (clips / "manifest.json", clips.resolve().parent / "manifest.json") if path.is_file()), None)
    if path is None:
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["clips"]
        return {name: str(known[name]["prompt"]) for name in names if name in known}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no manifest of scripts/aigc100.py ({error!r}): move it, or make it anew") from error
