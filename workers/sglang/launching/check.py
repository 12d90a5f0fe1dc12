"""Run in SGLang's interpreter: what SGLang's own parser makes of its arguments, as one line of JSON.

It imports nothing of warmpath's. A wrong argument ends it as it would end SGLang: usage and reason on standard error, status 2.
"""

import argparse
import json
import sys
from typing import Any

MARK = "warmpath-arguments "


def main(arguments: list[str]) -> None:
    """Print which options were given, by SGLang's names for them, and which there are."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="sglang")
    ServerArgs.add_cli_args(parser)
    arguments = _merged(parser, arguments)
    parser.parse_args(arguments)
    for action in parser._actions:  # noqa: SLF001  no public way
        action.default = argparse.SUPPRESS
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    known = sorted({action.dest for action in parser._actions})  # noqa: SLF001
    found = {"given": given, "known": known, "binds_addresses": _binds_addresses()}
    sys.stdout.write(f"\n{MARK}{json.dumps(found, default=str)}\n")


def _merged(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments with those of SGLang's `--config`."""
    if "--config" not in arguments:
        return arguments
    try:
        from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger
    except ImportError:
        from sglang.srt.server_args_config_parser import ConfigArgumentMerger
    merger: Any = ConfigArgumentMerger(parser)
    try:
        merged: list[str] = merger.merge_config_with_args(arguments)
    except ValueError as error:
        parser.error(str(error))
    return merged


def _binds_addresses() -> bool:
    """Whether event sockets can be bound to one address; else only to all of them."""
    try:
        from sglang.srt.disaggregation.kv_events import KVEventsConfig
    except ImportError:
        return False
    return "bind" in getattr(KVEventsConfig, "model_fields", {})


if __name__ == "__main__":
    main(sys.argv[1:])
