"""For all tests: one thread a process (several processes run at once), no deadlines on loaded machines."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("autocomp", deadline=None)
settings.load_profile("autocomp")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that starts jobs in the background lets them, and all their children, ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
