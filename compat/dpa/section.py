"""A YAML file whose every key must be taken: what is left over, missing or contradicting is named by its place."""

from pathlib import Path

import yaml

from common.errors import BadInput
from common.files import read_text

REQUIRED = object()


class Section:
    """A mapping of the file, with its place in it."""

    def __init__(self, values, file: Path, place: tuple[str, ...] = ()):
        self.file, self.place, self.children = file, place, []
        if not isinstance(values, dict):
            raise BadInput(f"{file}: {'.'.join(place) or 'the file'}: expected keys and values, found {values!r}")
        self.left = {str(key): value for key, value in values.items()}  # not yet taken

    def error(self, key: str, trouble: str) -> BadInput:
        return BadInput(f"{self.file}: {'.'.join((*self.place, key))}: {trouble}")

    def note(self, key: str, text: str) -> None:
        print(f"{self.file}: {'.'.join((*self.place, key))}: {text}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.left.get(key) is not None

    def take(self, key: str, default=REQUIRED):
        """The value; the default where it is absent or null. BadInput without either."""
        value = self.left.pop(key, None)
        if value is None and default is REQUIRED:
            raise self.error(key, "missing")
        return default if value is None else value

    def number(self, key: str, default=REQUIRED):
        """A number of 0 or more; 1e-3, which YAML takes for text, is one."""
        value = self.take(key, default)
        if value is default:
            return value
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1
        if isinstance(value, bool) or not 0 <= number < float("inf"):
            raise self.error(key, f"expected a number of 0 or more, found {value!r}")
        return number

    def whole(self, key: str, default=REQUIRED):
        """A whole number of 0 or more."""
        number = self.number(key, default)
        if number is not default and number != int(number):
            raise self.error(key, f"expected a whole number, found {number:g}")
        return number if number is default else int(number)

    def switch(self, key: str, default: bool | None = False) -> bool | None:
        return self.one_of(key, (True, False), default)

    def text(self, key: str, default=REQUIRED) -> str:
        value = self.take(key, default)
        if value is not default and not isinstance(value, str):
            raise self.error(key, f"expected text, found {value!r}")
        return value

    def one_of(self, key: str, offered: tuple, default=REQUIRED):
        """The value, one of those that are offered."""
        value = self.take(key, default)
        if value is not default and not any(
            value is each or (value == each and type(value) is type(each)) for each in offered
        ):
            raise self.error(key, f"{value} is not offered, expected {' or '.join(map(str, offered))}")
        return value

    def section(self, key: str, default=REQUIRED) -> "Section":
        """The mapping below a key."""
        child = Section(self.take(key, default), self.file, (*self.place, key))
        self.children.append(child)
        return child

    def drop(self, *keys: str) -> None:
        """Take keys that have no effect here."""
        for key in keys:
            self.left.pop(key, None)

    def keep(self, *keys: str) -> None:
        """Drop all other keys."""
        self.left = {key: value for key, value in self.left.items() if key in keys}

    def finish(self) -> None:
        """BadInput for a key that nothing took and that is not null."""
        for key in self.left:
            if self.has(key):
                raise self.error(key, "unknown key")
        for child in self.children:
            child.finish()


def read(path: Path) -> Section:
    """A YAML file. BadInput when it is none."""
    try:
        return Section(yaml.safe_load(read_text(path)), path)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # of dates and numbers that cannot be
        raise BadInput(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from None
