"""What all tests share: how hypothesis searches, and no core dumps from processes that tests kill on purpose."""

from __future__ import annotations

import os
import resource

from hypothesis import HealthCheck, settings

# Machines under load are slow for reasons that no test is about. In CI the examples are the same every time, so that a
# failure there is one that anybody can repeat.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
