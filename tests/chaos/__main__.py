"""`python -m tests.chaos`: random faults on a site of real processes; see docs/deployment.md.

The last line is `chaos: F faults, D divergent, L leaked, R lost`; the exit status is 0 only if D, L and R are 0.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tests.chaos.campaign import Campaign
from tests.chaos.faults import FAULTS
from tests.chaos.site import Site

if TYPE_CHECKING:
    from tests.chaos.campaign import Strike


def tell(number: int, strike: Strike) -> None:
    """One fault, one line; and what was wrong after it."""
    said = f"{number:4d}  {strike.fault} ({strike.victim}): true again after {strike.convergence_seconds:.2f} s"
    wrong = [
        *strike.findings.divergent,
        *strike.findings.leaked,
        *(f"lost at {at}: {why}" for at, why in strike.losses),
    ]
    print(said, *wrong, sep="\n      ! ", flush=True)


async def run(options: argparse.Namespace, folder: Path) -> bool:
    """The campaign; whether nothing was found."""
    async with Site(folder, durable=options.durable) as site:
        campaign = Campaign(
            site,
            options.seed,
            settle_seconds=options.settle,
            kinds=options.only,
            burst_events=options.burst,
            together=options.together,
            told=tell,
        )
        try:
            await campaign.run(options.faults, options.seconds)
        finally:
            if options.json:
                options.json.write_bytes(msgspec.json.format(msgspec.json.encode(campaign.report()), indent=1))
    report = campaign.report()
    print(f"requests: {report['requests']}; convergence, seconds: {report['convergence_seconds']}")
    print(campaign.summary().line())
    return campaign.summary().ok


def main() -> int:
    """Run; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--faults", type=int, metavar="N", help="how many (default: no limit but time)")
    parser.add_argument("--seconds", type=float, metavar="S", help="for how long (default: no limit but faults)")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (default: 1)")
    parser.add_argument(
        "--settle", type=float, default=5.0, metavar="S", help="in which all must be true again (default: 5)"
    )
    parser.add_argument("--burst", type=int, default=100_000, metavar="N", help="events of a burst (default: 100000)")
    parser.add_argument(
        "--together", type=float, default=0.25, metavar="P", help="how often two faults come at once (default: 0.25)"
    )
    parser.add_argument("--durable", action="store_true", help="with --durable-events: streams in NATS")
    parser.add_argument("--only", action="append", choices=FAULTS, metavar="FAULT", help="draw this kind; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--folder", type=Path, help="keep logs here (default: a temporary folder)")
    options = parser.parse_args()
    if options.faults is None and options.seconds is None:
        options.faults = 60
    with tempfile.TemporaryDirectory(prefix="warmpath-chaos-") as scratch:
        return 0 if asyncio.run(run(options, options.folder or Path(scratch))) else 1


if __name__ == "__main__":
    sys.exit(main())
