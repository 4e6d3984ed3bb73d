"""`rmagent sync --paced` as the resident agent's child: without the command line, whose parser takes long to load."""

from __future__ import annotations

import sys

from ..errors import Error
from .agent import Agent
from .config import load
from .exits import said
from .log import Log

__all__ = ["main"]


def main(root: str, config_file: str | None) -> int:
    """One run that waits for what is not due, as the resident agent does it; the exit status."""
    screen = sys.stderr.isatty()
    log = Log("rmagent", screen=screen)
    try:
        config = load(root, config_file)
        log = Log("rmagent", screen=screen, level=config.log_level, quiet=True)
        with Agent(config, log, paced=True) as agent:
            return agent.sync()
    except Error as err:
        return said(log, err)
    except KeyboardInterrupt:
        return 130
