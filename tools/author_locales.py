"""Writes locales/en/nodeDefs.json from the nodes' schemas, and says what the other languages lack.

`python3 scripts/run.py tools/author_locales.py`, after a change to a node's names or tooltips.
"""

import json
import urllib.request
from collections.abc import Iterator

from comfyui import HOME, PACK_NAME, REPO, say, server

LOCALES = REPO / "locales"
LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de")


def english(object_info: dict) -> dict:
    """Returns the pack's texts as ComfyUI's front end looks them up, {node id: texts}, of a server's /object_info."""
    ours = {name: node for name, node in object_info.items() if node["python_module"].endswith(PACK_NAME)}
    return {name: node_texts(node) for name, node in sorted(ours.items())}


def node_texts(node: dict) -> dict:
    outputs = {}
    for i, (kind, name, tooltip) in enumerate(zip(node["output"], node["output_name"], node["output_tooltips"], strict=True)):
        outputs[str(i)] = {"tooltip": tooltip} if name == kind else {"name": name, "tooltip": tooltip}
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {key: {"name": name, "tooltip": tooltip} for key, name, tooltip in inputs(node["input"])},
        "outputs": outputs,
    }


def inputs(groups: dict, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields key, name and tooltip of each input, and of those that a choice of a DynamicCombo brings.

    The front end's key of such an input is both names with an underscore between them.
    """
    for group in ("required", "optional"):
        for name, (_, options) in groups.get(group, {}).items():
            yield prefix + name, name, options["tooltip"]
            for choice in options.get("options", []):
                if isinstance(choice, dict):
                    yield from inputs(choice["inputs"], f"{prefix}{name}_")


def flat(texts: dict, path: str = "") -> dict[str, str]:
    """Returns nested texts as {dotted path: text}."""
    found = {}
    for key, value in texts.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


def read(language: str) -> dict:
    """Returns a language's texts, nothing where there is no file yet."""
    path = LOCALES / language / "nodeDefs.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def main() -> None:
    with server(HOME / "authoring") as (address, _), urllib.request.urlopen(f"{address}/object_info") as response:
        texts = english(json.load(response))
    before, now = flat(read("en")), flat(texts)
    (LOCALES / "en").mkdir(parents=True, exist_ok=True)
    (LOCALES / "en" / "nodeDefs.json").write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", "utf-8")
    reworded = {key for key in before.keys() & now.keys() if before[key] != now[key]}
    for language in LANGUAGES[1:]:
        there = flat(read(language))
        for key in sorted(now.keys() - there.keys()):
            say(f"{language} lacks {key}: {now[key]}")
        for key in sorted(there.keys() - now.keys()):
            say(f"{language} needs no longer {key}: {there[key]}")
        for key in sorted(reworded & there.keys()):
            say(f"{language} translates an older {key}: {before[key]} -> {now[key]}")


if __name__ == "__main__":
    main()
