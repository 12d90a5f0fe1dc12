"""The four packages have names that others use too: make sure that all of them are ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("events", "router", "workers", "sim")


class ForeignPackage(Exception):
    """A package of the same name from elsewhere hides one of ours; the text names both places."""


def check_one_root() -> Path:
    """The folder that holds all four packages. O(1), imports none of them.

    :raises ForeignPackage: they lie in different folders, or one is missing.
    """
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if root / package not in places:
            found = ", ".join(map(str, places)) or (spec.origin if spec else None) or "nowhere"
            raise ForeignPackage(f"package {package!r} comes from {found}, not from {root}: another one has its name")
    return root
