"""Explains in one line what was mistyped on the command line: the rule, the value, the fix."""

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
    Token,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)


def explain(error: CycloptsError, app: App) -> str:
    """Return what was mistyped in one line: the rule, the value and the fix."""
    option, value = (error.argument.name, error.argument.value) if error.argument else ("an option", "something else")
    match error:
        case UnusedCliTokensError(unused_tokens=[word, *_]):
            commands = [name for name in app if not name.startswith("-")]
            takes = f"{error.command_chain[0]} takes options" if error.command_chain else ""
            meant = f" (did you mean --data {word}?)" if Path(word).is_dir() else _meant(word, commands)
            text = f"{takes or 'a command is one of ' + ', '.join(commands)}, but got {word!r}{meant}"
        case UnknownOptionError():
            word = error.token.keyword or error.token.value
            options = [name for argument in error.argument_collection for name in argument.names]
            text = f"there is no option {word}{_meant(word, options)}"
        case ValidationError():
            text = f"{option} {error.exception_message.rstrip('.').lower()}, but got {value}"
        case CoercionError(token=Token() as token):
            kinds: dict[object, str] = {int: "a whole number", float: "a number"}
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
