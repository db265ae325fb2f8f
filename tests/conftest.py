"""Each process of the tests computes in one thread: there are as many as cores, and waiting threads spin."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes depends on what else the machine does.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
