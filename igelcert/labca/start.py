"""Where the command lab-ca starts: it says so when the packages that it needs are not installed."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    try:
        from .cli import main as run
    except ModuleNotFoundError as err:
        if (err.name or "").startswith("igelcert"):
            raise
        print(f"lab-ca: error: the Python package {err.name} is not installed", file=sys.stderr)
        print("lab-ca: hint: pip install 'igelcert[proxy]'", file=sys.stderr)
        return 1
    return run()
