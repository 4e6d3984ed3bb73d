"""Where the command ca-proxy starts: it says so when the packages that it needs are not installed."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    try:
        from .cli import main as run
    except ModuleNotFoundError as err:
        if (err.name or "").startswith("igelcert"):
            raise
        print(f"ca-proxy: error: the Python package {err.name} is not installed", file=sys.stderr)
        print("ca-proxy: hint: pip install 'igelcert[proxy]'", file=sys.stderr)
        return 1
    return run()
