"""For all tests: one thread a process (several processes run at once), no deadlines on loaded machines."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("autocomp", deadline=None)
settings.load_profile("autocomp")
