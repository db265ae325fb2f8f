"""Explains a mistyped command line in one line: what is wrong, the value, the fix."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Token,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

UNITS = {
    "MINUTES": {"": 1, "s": 1 / 60, "m": 1, "h": 60, "d": 24 * 60},
    "N": {"": 1, "%": 1, "k": 1e3, "m": 1e6, "g": 1e9},
}
"""Factors of units, by their first letter, for options in minutes and for all others."""


def explain(error: CycloptsError, app: App) -> str:
    """Return one line about a mistyped command line: what is wrong, the value and the fix."""
    option, value = (error.argument.name, error.argument.value) if error.argument else ("an option", "something else")
    match error:
        case UnusedCliTokensError(unused_tokens=[word, *_]):
            commands = [name for name in app if not name.startswith("-")]
            meant = f" (did you mean --data {word}?)" if Path(word).is_dir() else ""
            if error.command_chain:
                text = f"unexpected argument {word!r}{meant}: {error.command_chain[0]} takes options only"
            else:
                text = f"unknown command {word!r}{meant or _meant(word, commands)}: choose one of {', '.join(commands)}"
        case MissingArgumentError():
            text = f"{option} needs a value"
        case UnknownOptionError():
            word = error.token.keyword or error.token.value
            options = [name for known in error.argument_collection if known.parse for name in known.names]
            text = f"unknown option {word}{_meant(word, options)}"
        case ValidationError():
            text = f"{option} {error.exception_message.rstrip('.').lower()}, but got {value}"
        case CoercionError(token=Token() as token):
            unit = error.argument.parameter.metavar if error.argument else None
            number = "a number of minutes" if unit == "MINUTES" else "a number"
            kinds: dict[object, str] = {int: "an integer", float: number}
            choices = get_args(error.target_type)
            kind = f"one of {', '.join(choices)}" if choices else kinds.get(error.target_type, "something else")
            meant = _meant(token.value, choices) if choices else _meant_number(token.value, unit, error.target_type)
            text = f"{option} must be {kind}, but got {token.value!r}{meant}"
        case _:
            text = " ".join(str(error).split()).rstrip(".")
            text = text[:1].lower() + text[1:]
    return f"{text}; see {shlex.join(['python', 'study.py', *(error.command_chain or ())])} --help"


def _meant_number(text: str, unit: object, kind: object) -> str:
    """Suggest the number that a text with a unit or commas stands for: 2h of an option in minutes is 120."""
    number = re.fullmatch(r"(\d[\d.,_]*(?:e\d+)?) ?([%a-z]?)[a-z]*", text.lower())
    factor = UNITS["MINUTES" if unit == "MINUTES" else "N"].get(number[2]) if number else None
    if number is None or factor is None:
        return ""
    try:
        value = float(re.sub(r",(?=\d{3}\b)", "", number[1]).replace(",", ".")) * factor
    except ValueError:
        return ""
    return f" (did you mean {value:.10g}?)" if kind is float or value.is_integer() else ""


def _meant(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""
