"""A YAML file of options: warmpath's own, and SGLang's beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path


class ConfigFileError(ValueError):
    """The file cannot be used; the text names it and the reason."""


class ConfigFile(NamedTuple):
    """What the file says."""

    words: list[str]
    """Warmpath's options, as on a command line."""
    engine: dict[str, Any]
    """All others: the engine's to understand."""


def read(path: Path, options: Collection[str]) -> ConfigFile:
    """The file's options; those among `options` (`--name`) are warmpath's.

    :raises ConfigFileError: it is missing, no YAML, or no map at its root.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"--config {path}: {error}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigFileError(f"--config {path}: no YAML: {reason}") from error
    if not isinstance(content, dict | None) or not all(isinstance(key, str) for key in content or {}):
        raise ConfigFileError(f"--config {path}: expected a map of options")
    ours = {key: value for key, value in (content or {}).items() if _option(key, options)}
    words = [word for key, value in ours.items() for word in as_words(_option(key, options), value)]
    return ConfigFile(words, {key: value for key, value in (content or {}).items() if key not in ours})


def _option(key: str, options: Collection[str]) -> str:
    """The option that a key names, written with `-` or `_`; empty: none of ours."""
    spellings = (f"--{key}", f"--{key.replace('_', '-')}")
    return next((spelling for spelling in spellings if spelling in options), "")


def as_words(option: str, value: Any) -> list[str]:
    """An option on a command line: `true` is its presence, `false` its absence, a list repeats it. O(n).

    >>> as_words("--tp", 2), as_words("--fast", True), as_words("--fast", False), as_words("--route", ["a", "b"])
    (['--tp', '2'], ['--fast'], [], ['--route', 'a', '--route', 'b'])
    """
    if isinstance(value, bool):
        return [option] if value else []
    if isinstance(value, list):
        return [word for item in value for word in as_words(option, item)]
    return [option, str(value)]


def dump(content: Mapping[str, Any], path: Path) -> None:
    """Write the engine's part to a file of its own."""
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
