"""The search: a coordinator asks Optuna for configurations and workers train them.

A spawned worker imports this package, so this file imports nothing.
"""


class StudyError(Exception):
    """A problem with a study that only the user can solve; its text is one line that says how."""
