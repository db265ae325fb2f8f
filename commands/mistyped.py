"""Explains a mistyped command line in one line: what is wrong, the value, the fix."""

from __future__ import annotations

import difflib
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
            kinds: dict[object, str] = {int: "an integer", float: "a number"}
            choices = get_args(error.target_type)
            kind = f"one of {', '.join(choices)}" if choices else kinds.get(error.target_type, "something else")
            text = f"{option} must be {kind}, but got {token.value!r}{_meant(token.value, choices)}"
        case _:
            text = " ".join(str(error).split()).rstrip(".")
            text = text[:1].lower() + text[1:]
    return f"{text}; see {shlex.join(['python', 'study.py', *(error.command_chain or ())])} --help"


def _meant(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""
