"""A study that has been run, for the commands that come after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna

from tuning import settings
from tuning.settings import Settings
from tuning.storage import IDENTITY, load_study


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The study, and where everything of it is."""

    study: optuna.Study
    folder: Path
    url: str
    """Of its database."""
    settings: Settings

    @property
    def name(self) -> str:
        """Its own, which is its folder's too."""
        return self.folder.name

    @property
    def pictures(self) -> str:
        """Which pictures it was begun with, split how."""
        return self.study.user_attrs[IDENTITY + "data"]


def find(results: Path, name: str | None, storage: str | None) -> Searched:
    """The study that is named, else the one run last. Raises StudyError where there is none."""
    folder, begun = settings.recall(results, name)
    url = settings.url(begun, folder, storage)
    return Searched(study=load_study(url, folder.name), folder=folder, url=url, settings=begun)
