"""Each process of the tests computes in one thread: there are as many as cores, and waiting threads spin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
