"""The forecast of a study's duration on this machine, before it starts.

It is based on the study's own trials if enough of them were trained in an equivalent slot; otherwise on a few timed
training steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search_space import Config
from tuning.devices import RunThere, Slot, run_here
from tuning.environment import environment
from tuning.timing import Timing, on_one_machine, time_steps
from tuning.trials import Trial

STEPS_SHARE = 0.84
"""Share of a trial's time that its training steps take; the rest is evaluation, augmentation and set-up
(benchmarks/README.md, "Where a trial's time goes")."""
ENOUGH = 6
"""Number of trials whose mean duration predicts the others: more than the three baselines, which are not typical."""


def seconds_so_far(trials: Sequence[Trial], slot: Slot, run_there: RunThere = run_here) -> float | None:
    """Return the mean seconds of the trials that were trained in an equivalent slot; None if there are too few.

    While trials are paused it is None, because only the promoted ones have ended, which took much longer than others.
    """
    if any(trial.is_paused for trial in trials):
        return None
    if sum(trial.result is not None for trial in trials) < ENOUGH:
        return None
    here = run_there(environment, slot)
    took = [
        trial.result.seconds
        for trial in trials
        if trial.result
        and all(trial.environment.get(fact) == here[fact] for fact in ("device", "threads", "precision"))
    ]
    return float(np.mean(took)) if len(took) >= ENOUGH else None


def seconds_per_trial(
    points: Sequence[Config],
    *,
    pictures: int,
    trained_share: float,
    slots: Sequence[Slot],
    timing: Timing | None,
    run_there: RunThere = run_here,
) -> float:
    """Return the expected seconds of one trial in one slot while all slots are busy.

    Args: `points`: typical points of the study, cheapest first; `pictures`: number of training pictures;
    `trained_share`: expected share of a trial's epochs that is trained; `timing`: what has been timed already;
    `run_there`: runs what is timed on the machine of the first slot.
    """
    precision = slots[0].precision
    if timing is None or precision not in timing.seconds:
        together = on_one_machine(slots)
        timing = run_there(time_steps, points, pictures=pictures, slots=together, precisions=[precision])
    assert timing is not None
    return timing.seconds[precision] / STEPS_SHARE * trained_share
