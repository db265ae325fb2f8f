"""The built-in data set: drawings of nine genera of mushrooms.

`GENERA` and `APPEARANCES` describe the genera; `counts` divides a total among them; `draw` makes one picture from
(genus, index, size, seed) and nothing else; `write` writes a set as class folders. The genera differ as real ones do
(gills or pores, ring, volva, warts, zones, slime), but their colours overlap, so that fine texture decides.
benchmarks/field_guide.py measures how hard they are to tell apart. Never eat a mushroom because of what you learn here.
"""

from __future__ import annotations

import heapq
import multiprocessing
import os
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from PIL import Image

from data import CACHE_FIX, DataError, Track, explained, no_track
from data.field_guide.scenery import compose
from data.field_guide.specimens import Genus
from model.files import printable, replacing
from model.limits import cpus

GENERA: dict[str, int] = {
    "Agaricus": 353, "Amanita": 750, "Boletus": 1073, "Cortinarius": 836, "Entoloma": 364,
    "Hygrocybe": 316, "Lactarius": 1563, "Russula": 1148, "Suillus": 311,
}  # fmt: skip
"""Pictures per genus in the full set: class sizes of Kaggle's maysee/mushrooms-classification-common-genuss-images."""

VERSION = 1
"""Version of the drawings, part of the name of their folder. Raise it when `draw` changes its pictures."""

DEFAULT_TOTAL = 1500
"""Pictures that are drawn unless more or fewer are asked for: a minute on two cores; the full set has 6,714."""
LEAST = 14
"""Smallest number of pictures per genus: a split of 70 / 15 / 15 leaves two each for validation and test."""

MAX_SIDE = 2048
"""Largest side of a picture in pixels."""

APPEARANCES: dict[str, Genus] = {
    "Agaricus": Genus(
        caps=(
            ("#c9a988", "#e6d9c6"), ("#b08a66", "#dccbb4"), ("#d9cfbd", "#e6dfd0"), ("#a27a55", "#cdb090"),
            ("#d9c39a", "#ebe0c4"),
        ),
        skin="scales", mark=("#6b4426", "#84572f", "#5a3a24", "#96683c"), height=(0.3, 0.8),
        unders=("#c98f86", "#a8685c", "#6a4436", "#8d5a4a", "#d8a9a0"), count=(38, 50), attach=-0.15,
        stems=("#efe8da", "#e4d8c4", "#f3eee4"), bark="bands", ink=("#b89a78", "#8a6a48"),
        width=(0.17, 0.27), length=(1.1, 1.8), club=(1.0, 1.4), ring=0.95,
    ),
    "Amanita": Genus(
        caps=(
            ("#b5341f", "#c9502a"), ("#6a5238", "#8f7452"), ("#7d7a4a", "#9aa06a"), ("#c98a2f", "#dca84e"),
            ("#b59a80", "#d3bda4"), ("#d6cfbc", "#e2dccb"), ("#5c5246", "#857a6a"),
        ),
        skin="warts", mark=("#f2ead6", "#e8dcc0", "#ddd3be", "#efe3b4"), height=(0.25, 0.85),
        unders=("#f1ecdd", "#ece4cf", "#f4f0e6"), count=(40, 54), attach=-0.15,
        stems=("#f0ebdd", "#e9dfc8", "#e6dcc4"), bark="bands", ink=("#c9b794", "#b7a27c"),
        width=(0.12, 0.2), length=(1.5, 2.3), club=(1.0, 1.4), ring=0.85, volva=0.9,
    ),
    "Boletus": Genus(
        caps=(
            ("#6b4526", "#95663a"), ("#8a5a30", "#b98a58"), ("#573a24", "#7d5a3c"), ("#a3432c", "#b9603c"),
            ("#b0895c", "#cbab7e"), ("#7f7250", "#a2946a"),
        ),
        skin="suede", mark=("#d9bf94", "#cdb184", "#e2cfa6"), height=(0.4, 0.95),
        unders=("#e8dfb8", "#c9b85a", "#a8a04a", "#d3c272", "#b5714a"), pores=True, count=(7.5, 9.5),
        stems=("#d9c39a", "#c9a468", "#e4d6b4", "#b98a58", "#d9b25e"),
        bark="net", ink=("#f1e8d0", "#7a4a2c", "#a33f2c", "#8d6440"),
        width=(0.26, 0.4), length=(0.9, 1.4), club=(1.3, 2.0),
    ),
    "Cortinarius": Genus(
        caps=(
            ("#7a4a2a", "#9c6a40"), ("#6d5a78", "#8f7d94"), ("#b07a3c", "#c99a58"), ("#8f3f28", "#a65a38"),
            ("#8a7350", "#a8926c"), ("#a86a3c", "#b98554"),
        ),
        skin="fibrils", mark=("#4a2c1a", "#5c3a24", "#3f2a28"), height=(0.35, 0.8), umbo=(0.0, 0.12),
        unders=("#a8622f", "#94522a", "#8a5a6a", "#b5763c", "#7d4526"), count=(30, 40), cortina=0.8,
        stems=("#d3bfa4", "#b5a0a8", "#c9a878", "#d8c8b0"), bark="threads", ink=("#a85a24", "#8f4a1f"),
        width=(0.14, 0.24), length=(1.3, 2.0), club=(1.1, 1.9),
    ),
    "Entoloma": Genus(
        caps=(
            ("#6a6058", "#94887a"), ("#8a7d6a", "#b0a48f"), ("#5a5f6e", "#7f8490"), ("#a89a80", "#cabda2"),
            ("#6d553e", "#8f765a"), ("#b5a88e", "#cabfa8"),
        ),
        skin="streaks", mark=("#d6ccb8", "#c4b8a4", "#e0d8c8"),
        height=(0.35, 0.75), peak=(0.2, 0.6), umbo=(0.1, 0.26), gloss=(0.05, 0.2),
        unders=("#d8a898", "#c99484", "#dcb8a8", "#c4a096"), count=(26, 36),
        stems=("#cfc6b6", "#b5aa9a", "#dcd4c4", "#a3a3aa"), bark="twist", ink=("#8a7f70", "#756a5c"),
        width=(0.1, 0.17), length=(1.6, 2.4), club=(1.0, 1.3),
    ),
    "Hygrocybe": Genus(
        caps=(
            ("#c02a1a", "#d9562a"), ("#d9741f", "#e89a3a"), ("#dcae2a", "#e8cc5a"), ("#a3311f", "#c4612f"),
            ("#7f8a3a", "#a8a850"), ("#e2d9b8", "#ece6cc"), ("#4a3a30", "#8a4a2c"),
        ),
        skin="wax", mark=("#8a2a14", "#b5501f", "#f0c24a", "#6a3a1c"),
        height=(0.6, 1.2), peak=(0.5, 1.0), umbo=(0.0, 0.12), gloss=(0.5, 0.9),
        unders=("#e8b84a", "#e0c88a", "#dc8a3a", "#ece0b8"), count=(18, 24), attach=0.05,
        stems=("#dc8a2f", "#e0b23f", "#c9502a", "#e4d08a"), bark="plain", ink=("#ecd890", "#e8c85a"),
        width=(0.12, 0.2), length=(1.4, 2.2), club=(0.9, 1.1),
    ),
    "Lactarius": Genus(
        caps=(
            ("#c9783a", "#dc9a5a"), ("#a8583a", "#c07a54"), ("#7d6a54", "#a08c70"), ("#d8b088", "#e6ccae"),
            ("#6a5c40", "#8a7c58"), ("#b98a6a", "#d3aa8a"), ("#b0452c", "#c46a40"),
        ),
        skin="zones", mark=("#a04f26", "#7a4028", "#8f5a34", "#5a4630", "#b5623a"),
        height=(0.2, 0.55), dip=(0.1, 0.4), gloss=(0.02, 0.2),
        unders=("#e6cda4", "#dcae78", "#ecdcc0", "#d89a5c"), count=(38, 48), attach=0.3, drops=0.75,
        stems=("#d3a070", "#c98a5a", "#dcc0a0", "#a8906c", "#c07a54"),
        bark="pits", ink=("#a8603a", "#8f5434", "#7d5a3c"),
        width=(0.2, 0.3), length=(0.8, 1.3), club=(0.8, 1.05),
    ),
    "Russula": Genus(
        caps=(
            ("#a82a2c", "#c4483c"), ("#6a3a54", "#8f5a70"), ("#6f7f4a", "#98a66a"), ("#d3a83a", "#e0c46a"),
            ("#8a5a34", "#b08a5c"), ("#e0d3b4", "#ece4d0"), ("#4f2f3c", "#9c4048"), ("#b57a70", "#d09a8a"),
        ),
        skin="chalk", mark=("#e4d2a8", "#ead9bc", "#dcc09a"), height=(0.22, 0.6), dip=(0.0, 0.22),
        unders=("#f4efe2", "#f0e8d0", "#ece0bc"), count=(34, 44),
        stems=("#f5f1e8", "#f1ebde", "#f0e4e0"), bark="brittle", ink=("#d8ccb4", "#e0b0a8"),
        width=(0.2, 0.31), length=(0.9, 1.4), club=(0.95, 1.2),
    ),
    "Suillus": Genus(
        caps=(
            ("#5a3420", "#8a5a30"), ("#7a4a24", "#a8783c"), ("#b5852f", "#cfa850"), ("#8f6a3a", "#b5925a"),
            ("#a3683a", "#c08a50"), ("#6a4a34", "#8d6c4a"),
        ),
        skin="slime", mark=("#3f2416", "#55321c", "#6a3f20"), height=(0.35, 0.8), gloss=(0.6, 1.0),
        unders=("#d9b83f", "#c9a83a", "#b8a04a", "#dcc872"), pores=True, count=(5.5, 7.0),
        stems=("#dcc06a", "#e0cf8f", "#cfa850", "#e4d6a4"), bark="dots", ink=("#6a3a1f", "#8a4f26", "#4f2f1c"),
        width=(0.17, 0.25), length=(0.9, 1.5), club=(0.95, 1.15), ring=0.4,
    ),
}  # fmt: skip


def counts(total: int) -> dict[str, int]:
    """Divide `total` pictures among the genera in the full set's proportions, at least `LEAST` each.

    By Webster's method, each picture goes to the genus with the largest ratio of full-set size to (pictures so far +
    1/2). A larger total never takes a picture away, and 6,714 gives `GENERA` itself.
    Raises DataError if `total` is less than `LEAST` per genus.
    """
    if total < LEAST * len(GENERA):
        raise DataError(
            f"{total} pictures are too few for the field guide (at least {LEAST} of each of its {len(GENERA)} genera, "
            f"{LEAST * len(GENERA)} in all): ask for more with --pictures N"
        )
    shared = dict.fromkeys(GENERA, LEAST)
    queue = [(-full / (LEAST + 0.5), genus) for genus, full in GENERA.items()]
    heapq.heapify(queue)
    for _ in range(total - LEAST * len(GENERA)):
        genus = queue[0][1]
        shared[genus] += 1
        heapq.heapreplace(queue, (-GENERA[genus] / (shared[genus] + 0.5), genus))
    return shared


def draw(genus: str, index: int, *, size: int = 256, seed: int = 0) -> Image.Image:
    """Draw picture number `index` (from 0) of a genus, RGB, `size` pixels square: a pure function of its arguments.

    Every size shows the same scene; below 256 pixels it is the 256-pixel picture, scaled down.
    """
    if genus not in APPEARANCES:
        raise ValueError(f"genus must be one of {', '.join(APPEARANCES)}, but got {genus!r}")
    if not 16 <= size <= MAX_SIDE:
        raise ValueError(f"16 <= size <= {MAX_SIDE} must hold, but got size={size}")
    if index < 0 or seed < 0:
        raise ValueError(f"index >= 0 and seed >= 0 must hold, but got index={index}, seed={seed}")
    rng = np.random.default_rng([seed, list(APPEARANCES).index(genus), index])
    image = compose(APPEARANCES[genus], rng, max(size, 256))
    return image if image.width == size else image.resize((size, size), Image.Resampling.BOX)


def draw_file(task: tuple[Path, str, int, int, int]) -> None:
    """Draw the picture for (path, genus, index, size, seed) and save it as a JPEG."""
    path, genus, index, size, seed = task
    with replacing(path) as unfinished:
        draw(genus, index, size=size, seed=seed).save(unfinished, "JPEG", quality=90)


def write(folder: Path, total: int, *, size: int = 256, seed: int = 0, track: Track = no_track) -> Path:
    """Draw the missing pictures of a set of `total` as folder/<Genus>/<Genus>_0001.jpg and so on; return `folder`.

    A smaller set consists of the first pictures of each genus of a larger one. Files that exist are complete and are
    kept, so a folder must be used for one size and one seed only. Two processes may write the same folder at once.
    Raises DataError for a total that is too small, or a folder that cannot be written.
    """
    problem = f"cannot draw the field guide into {printable(folder)}"
    tasks: list[tuple[Path, str, int, int, int]] = []
    with explained(problem, CACHE_FIX):
        for genus, number in counts(total).items():
            (folder / genus).mkdir(parents=True, exist_ok=True)
            there = {path.name for path in (folder / genus).iterdir()}
            paths = [folder / genus / f"{genus}_{index + 1:04d}.jpg" for index in range(number)]
            tasks += [(path, genus, index, size, seed) for index, path in enumerate(paths) if path.name not in there]
        try:
            _draw_files(tasks, track)
        except BrokenProcessPool:
            raise DataError(f"{problem} (a drawing process was killed): run the same command again to resume") from None
    return folder


def _draw_files(tasks: list[tuple[Path, str, int, int, int]], track: Track) -> None:
    # A process takes about half a second to start: as long as ten pictures.
    workers = min(cpus(), len(tasks) // 50)
    with ExitStack() as stack:
        drawn = map(draw_file, tasks)
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, spawn, initializer=_end_with_the_parent))
            drawn = pool.map(draw_file, tasks, chunksize=8)
        if tasks:
            deque(track(drawn, "Drawing mushrooms", len(tasks)), maxlen=0)


def _end_with_the_parent() -> None:
    """Make a drawing process exit when its parent is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
