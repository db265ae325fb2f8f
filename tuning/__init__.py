"""The search: a coordinator asks Optuna for configurations and workers train them.

A spawned worker imports this package, so its face imports nothing.
"""


class StudyError(Exception):
    """Something about a study that only the user can mend; its text is one line with the way out."""
