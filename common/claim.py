"""A folder belongs to the settings that began it: kept in a file of it, compared when the command is given again."""

import os
from pathlib import Path

from common.errors import BadInput
from common.files import read_json, write_json


def claim(folder: Path, name: str, settings: dict, flag: str) -> None:
    """Make the folder that of these settings, kept in its file of this name, or find it so.

    Errors: BadInput names the settings in which what is there differs, by the flag that chose the folder.
    """
    path = folder / name
    if not os.path.lexists(path):
        write_json(path, settings)
        return
    found = differences(read_json(path), settings)
    if found:
        raise BadInput(f"{flag} {folder}: was made with {found}; choose another folder")


def differences(before: dict, now: dict, dash: str = "--") -> str:
    """The settings that differ, as `--size 64 (now 128), other data`; empty when none does.

    What "data" and names that end in sha256 hold is a digest, which tells a reader nothing.
    """
    return ", ".join(
        f"other {name}"
        if name == "data" or name.endswith("sha256")
        else f"{dash}{name} {before.get(name)} (now {now.get(name)})"
        for name in changed(before, now)
    )


def changed(before: dict, now: dict) -> list[str]:
    """The names of the settings that differ."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]
