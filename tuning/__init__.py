"""The search: a coordinator asks Optuna for configurations and workers train them.

A spawned worker imports this package, so this file imports nothing.
"""


class StudyError(Exception):
    """Problem with a study that only the user can fix; its message is one line and says how."""
