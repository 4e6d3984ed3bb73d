"""The pages: forms over the functions that the command line and the REST interface use, too."""

from __future__ import annotations

from flask import Blueprint

from ...context import Context
from . import access, ca, devices, people, profiles, records
from .base import dress

__all__ = ["make"]


def make(context: Context) -> Blueprint:
    routes = Blueprint(
        "pages",
        __name__,
        template_folder="../templates",
        static_folder="../static",
        static_url_path="/static",
    )
    dress(routes, context)
    for module in (access, ca, devices, profiles, records, people):
        module.add(routes, context)
    return routes
