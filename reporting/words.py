"""Formats numbers, times, names and configurations for the report, the dashboard's notes and the terminal."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from model.metrics import wilson

if TYPE_CHECKING:
    from tuning.trials import Trial


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share from 0 to 1 as a percentage: 0.6385 -> 63.85 %; "-" for None."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def share_of(part: int, whole: int) -> str:
    """Return a share with its 95 % interval: 2 of 3 -> 67 % (21 to 94); "-" for a share of nothing."""
    if not whole:
        return "-"
    low, high = wilson(part, whole)
    return f"{percent(part / whole, 0)} ({100 * low:.0f} to {100 * high:.0f})"


def points(difference: float) -> str:
    """Return the size of a difference between two shares in percentage points: 0.133 -> 13.3 points."""
    return f"{100 * abs(difference):.1f} points"


def duration(seconds: float) -> str:
    """Return a duration in the unit that a person would use: 59.6 -> 60 s, 5400 -> 1.5 h."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a count with its noun: 2, "trial" -> 2 trials; `many` is an irregular plural."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def times(count: int) -> str:
    """Return how often something happened: 1 -> once, 3 -> 3 times."""
    return "once" if count == 1 else f"{count:,} times"


def listed(words: Sequence[str]) -> str:
    """Return names joined as in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def number(value: float) -> str:
    """Return a number with three significant digits, in scientific notation only if it would have many zeros."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.3g}"
    if abs(value) >= 1e-5:
        return np.format_float_positional(float(f"{value:.3g}"), trim="-")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def value_text(value: Any) -> str:
    """Return the value of a setting or parameter as text: a number, yes, no, none, or the text itself."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return number(value) if isinstance(value, int | float) else str(value)


def trial_name(trial: Trial) -> str:
    """Return a trial's number, and which baseline it is: trial 1 (hand-tuned recipe)."""
    return f"trial {trial.number} ({trial.baseline})" if trial.baseline else f"trial {trial.number}"


def stopped_baselines(trials: Sequence[Trial]) -> str:
    """Return the baselines that were not trained to their last epoch: original recipe 53.8 % after epoch 8."""
    stopped = [trial for trial in trials if trial.baseline and trial.value is None and trial.epochs]
    return listed([f"{trial.baseline} {percent(trial.reached, 1)} after epoch {trial.epochs}" for trial in stopped])


def numbered_epochs(numbers: Sequence[int]) -> str:
    """Return the numbers of epochs as text: epoch 8, or epochs 8 and 24."""
    return f"epoch{'s' if len(numbers) > 1 else ''} {listed([f'{number:,}' for number in numbers])}"


def how_far(trials: Sequence[Trial]) -> str:
    """Return how many finished or paused trials were trained how far: 3 to the last epoch and 9 to epoch 24.

    If they stopped at many epochs, it returns the range: 21 to the last epoch and 19 to epochs 4 to 9.
    """
    partly = Counter(
        trial.epochs
        for trial in trials
        if trial.value is None and trial.epochs and (trial.is_finished or trial.is_paused)
    )
    complete = sum(trial.value is not None for trial in trials)
    parts = [f"{complete:,} to the last epoch"] * bool(complete)
    if len(partly) > 3:
        return listed([*parts, f"{partly.total():,} to epochs {min(partly)} to {max(partly)}"])
    return listed([*parts, *(f"{count:,} to epoch {epoch}" for epoch, count in sorted(partly.items(), reverse=True))])


def configuration(config: Any) -> dict[str, dict[str, str]]:
    """Return every setting of a configuration, from the fields of its dataclass: group -> name -> value.

    A field that is itself a dataclass is a group; all other fields form the group "input".
    """
    groups: dict[str, dict[str, str]] = {"input": {}}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", " ")
        if dataclasses.is_dataclass(value):
            groups[name] = configuration(value)["input"]
        else:
            groups["input"][name] = value_text(value)
    return groups


def short(text: str, length: int) -> str:
    """Return a name on one line, without control characters, shortened to `length` columns with an ellipsis."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if columns(line) <= length:
        return line
    while line and columns(line) > length - 1:
        line = line[:-1]
    return line.rstrip() + "…"


def columns(text: str) -> int:
    """Return the width of a text in columns: wide East Asian characters count as two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
