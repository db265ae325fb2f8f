"""Each process of the tests computes in one thread: there are as many of them as cores, and threads that wait spin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
