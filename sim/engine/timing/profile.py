"""Timing models as JSON files, with their origin.

    {"timing": "step" | "polynomial" | "table",
     "origin": "where the numbers come from",
     "engine": {…what was measured: versions, options; for the reader…},
     "fit": {…how well it fits; for the reader…},
     "parameters": {…the model's fields, in seconds and tokens…}}

Those that come with the project are in `sim/profiles` and go by their name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from sim.engine.timing.polynomial import PolynomialTiming
from sim.engine.timing.step import StepTiming
from sim.engine.timing.table import TableTiming

FOLDER = Path(__file__).parents[2] / "profiles"
DEFAULT = "h200-llama-8b"
KINDS = {"step": StepTiming, "polynomial": PolynomialTiming, "table": TableTiming}

AnyTiming = StepTiming | PolynomialTiming | TableTiming


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The file as it is."""

    timing: str
    origin: str
    parameters: dict[str, Any]
    engine: dict[str, Any] = {}
    fit: dict[str, Any] = {}


@dataclass(frozen=True)
class Profile:
    """A timing model that knows where it comes from."""

    name: str
    timing: AnyTiming
    origin: str
    engine: dict[str, Any] = field(default_factory=dict)
    """What was measured: versions, options."""
    fit: dict[str, Any] = field(default_factory=dict)
    """How well the model fits what was measured."""

    def at_speed(self, speed: float) -> Profile:
        """The same engine, `speed` times as fast.

        :raises ValueError: the speed is not positive.
        """
        return replace(self, timing=replace(self.timing, speed=self.timing.speed * speed))

    def save(self, path: Path) -> None:
        """Write the JSON file that `load` reads."""
        kind = next(name for name, model in KINDS.items() if isinstance(self.timing, model))
        content = _File(kind, self.origin, asdict(self.timing), self.engine, self.fit)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def names() -> list[str]:
    """The profiles that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name_or_path: str | Path) -> Profile:
    """Read a profile, by the name of one of the project's or by its file.

    :raises ValueError: there is none, or it is not a profile (the message names the file and the field).
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        raise ValueError(f"profile {str(name_or_path)!r} is neither a file nor one of {', '.join(names())}")
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_File)
        timing = _timing(content)
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"profile {path}: {error}") from error
    return Profile(path.stem, timing, content.origin, content.engine, content.fit)


def _timing(content: _File) -> AnyTiming:
    model = KINDS.get(content.timing)
    if model is None:
        raise ValueError(f"timing must be one of {', '.join(KINDS)}, not {content.timing!r}")
    unknown = content.parameters.keys() - {item.name for item in fields(model)}
    if unknown:
        raise ValueError(f"a {content.timing} model has no parameter {', '.join(sorted(unknown))}")
    made: AnyTiming = msgspec.convert(content.parameters, model)
    return made
