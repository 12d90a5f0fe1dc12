"""What all command lines share: errors are one line with status 2, and values are checked where they are read."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn
from urllib.parse import urlsplit

USAGE_ERROR = 2


class UsageError(Exception):
    """What was asked for cannot be done; a command line says so in one line, and ends with status 2."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with status 2."""
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}\n")


def server_url(text: str) -> str:
    """An HTTP server's base URL.

    :raises argparse.ArgumentTypeError: it is not http://HOST:PORT.
    """
    parts = urlsplit(text.rstrip("/"))
    try:
        complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        complete = False
    if not complete or parts.path or parts.query:
        raise argparse.ArgumentTypeError(f"{text!r} is not http://HOST:PORT")
    return text.rstrip("/")


def positive(text: str) -> int:
    """A whole number above 0.

    :raises argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def natural(text: str) -> int:
    """A whole number, 0 or above.

    :raises argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def port(text: str) -> int:
    """A TCP port; 0 stands for a free one.

    :raises argparse.ArgumentTypeError: it is none.
    """
    number = natural(text)
    if number >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: ports end at 65535")
    return number


def seconds(text: str) -> float:
    """A positive, finite number of seconds.

    :raises argparse.ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return number
