"""`python -m tests.load`: load tests of the proxy, on loopback, bounded in number and time."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from .renewals import renewals
from .scenarios import FULL, QUICK, as_json, table
from .scenarios import SCENARIOS as ALONE
from .shared import shared
from .siege import siege

SCENARIOS = {**ALONE, "shared": shared, "siege": siege, "renewals": renewals}
EPILOG = """scenarios (default: all)
  overhead  relayed enrollments on kept and on fresh connections, over EST and SCEP; nginx in the proxy's place
  storm     10000 devices that wait get a profile at once; the CA takes 50 ms, 8 at a time, and fails for a minute
  idle      5000 devices wait for other settings, at rest and when these come
  stalled   enrollments beside 20 silent clients and 20 with half a ClientHello, and without
  curve     enrollments with 10, 1000 and 100000 devices on record
  shared    enrollments at three proxies on PostgreSQL and at one on SQLite, in turn
  siege     2000 devices enroll at three proxies on PostgreSQL behind HAProxy while the proxies are killed in turn, every
            five seconds, and PostgreSQL is restarted
  renewals  2000 devices renew certificates that live for 150 seconds, in windows and without; beside it the simulation
            (python -m tests.load.simulate)

CA, proxy and devices are processes of their own and end with the test; everything listens on loopback. Run it from the
root of the repository, where scripts/setup --dev has been. Exit: 0; 1 when a limit is missed (with --quick never)."""


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.load", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="which (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="small, to see that it runs; the figures say nothing"
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="devices of storm, idle, siege and renewals (at most 20000)"
    )
    parser.add_argument("--outage", type=float, metavar="SECONDS", help="for which the CA fails in the storm")
    parser.add_argument(
        "--delay", type=float, metavar="SECONDS", help="that the CA takes in the storm (default 0.05)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of what is compared")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    if args.devices:
        size = replace(
            size,
            storm=min(args.devices, 20_000),
            idle=min(args.devices, 20_000),
            siege=min(args.devices, 20_000),
            renewals=min(args.devices, 20_000),
        )
    if args.outage is not None:
        size = replace(size, outage=args.outage)
    if args.delay is not None:
        size = replace(size, delay=args.delay)
    if args.rounds:
        size = replace(size, rounds=args.rounds)
    rows = []
    for name in args.scenario or SCENARIOS:
        with tempfile.TemporaryDirectory() as place:
            rows += SCENARIOS[name](Path(place), size)
        print(f"{name}: done; load of the machine {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    print(table(rows))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(as_json(rows) + "\n")
    return 0 if args.quick or all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
