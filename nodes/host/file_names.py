"""Names of saved files: what ComfyUI's page replaces in its own nodes' names is replaced here, for prompts of the page and of the API."""

import re
from datetime import datetime

from ...simplegvr_core.checks import DEVICES

FORBIDDEN = r'[<>:"|?*\x00-\x1f\x7f]'  # in file names, on Windows, macOS or Linux; / and \ separate folders
PATTERN = re.compile(r"%([^%]+)%")
DATE = re.compile(r"yyyy|yy|dd?|MM?|hh?|mm?|ss?")


def resolve_prefix(prefix: str, prompt: dict | None, workflow: dict | None, now: datetime | None = None) -> str:
    """Returns a filename_prefix with dates and other nodes' values in it, and no character that a file system refuses.

    %date:yyyy-MM-dd% is the time, with the letters of yyyy, MM, dd, hh, mm, ss or one of each. %NODE.widget% is a value of the first
    node with that name for search and replace, title or class. What matches nothing is left, as are Save Video's own %year% and
    others.

    Args:
        prefix: Folders and start of the file name.
        prompt: The prompt, {id: node}.
        workflow: The page's workflow, whose nodes have names for search and replace; None by API.
        now: The time; None is this moment.
    """
    now = now or datetime.now()

    def replaced(match: re.Match) -> str:
        name, _, widget = match[1].rpartition(".")
        if match[1].startswith("date:"):
            return DATE.sub(lambda token: date_part(token[0], now), match[1].removeprefix("date:"))
        value = node_value(name, widget, prompt or {}, workflow or {}) if name else None
        return match[0] if value is None else re.sub(r"[/\\]", "_", str(value))

    return "/".join(portable(part) for part in re.split(r"[/\\]", PATTERN.sub(replaced, prefix)))


def date_part(token: str, now: datetime) -> str:
    """Returns a part of a date, as a token of the page's format asks for it: its letter, and as many digits as it has letters."""
    if token[0] == "y":
        return f"{now.year}"[-len(token) :]
    value = {"M": now.month, "d": now.day, "h": now.hour, "m": now.minute, "s": now.second}[token[0]]
    return f"{value:0{len(token)}}"


def node_value(name: str, widget: str, prompt: dict, workflow: dict) -> object:
    """Returns a widget's value of the first node with that name; None when there is none or another node gives it."""
    names = {str(node["id"]): node.get("properties", {}).get("Node name for S&R") for node in workflow.get("nodes", [])}
    by_name = [node for id, node in prompt.items() if names.get(id, node["class_type"]) == name]
    by_title = [node for node in prompt.values() if node.get("_meta", {}).get("title") == name]
    for node in by_name or by_title:
        value = node["inputs"].get(widget)
        return None if isinstance(value, list | dict) else value
    return None


def portable(part: str) -> str:
    """Returns the name of a folder or file as all systems take it: . and .. and %year% are left."""
    if part in ("", ".", ".."):
        return part
    part = re.sub(FORBIDDEN, "_", part)
    part = part[:-1] + "_" if part[-1] in ". " else part
    return f"{part}_" if DEVICES.match(part) else part
