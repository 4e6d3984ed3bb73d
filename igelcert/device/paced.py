"""`rmagent sync --paced` as the resident agent's child: without the command line, whose parser takes long to load."""

from __future__ import annotations

import sys

from ..errors import Error
from .agent import Agent
from .config import load
from .exits import code_of
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
        log.error(str(err))
        log.hint(err.hint)
        return code_of(err)
    except KeyboardInterrupt:
        return 130
