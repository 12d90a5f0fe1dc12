"""Values of options: times, rates and factors."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

STANDARD_OUTPUT = Path("-")


def writable(text: str) -> Path:
    """A file in a folder that is there, or `-`: told before the work is done and not after it.

    :raises argparse.ArgumentTypeError: there is no such folder, or it is a folder itself.
    """
    path = Path(text)
    if path == STANDARD_OUTPUT:
        return path
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path


def time(text: str) -> float:
    """Seconds from the start of a trace.

    :raises argparse.ArgumentTypeError: it is no number of at least 0.
    """
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def rate(text: str) -> tuple[float, bool]:
    """Requests per second; with an x before it, times the rate that is. (number, whether it is a factor).

    :raises argparse.ArgumentTypeError: it is neither.
    """
    number = _number(text.removeprefix("x"))
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: 5 (requests per second) or x2 (twice as many)")
    return number, text.startswith("x")


def factor(text: str) -> float:
    """A factor, with or without an x before it.

    :raises argparse.ArgumentTypeError: it is no positive number.
    """
    number = _number(text.removeprefix("x"))
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no factor, as x2 or x0.5")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
