"""Hypothesis: the same examples in every run of CI, so that a red build is red again on a desk."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("desk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("desk"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "desk")
