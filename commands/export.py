"""`python study.py export`: exports the winner as a bundle."""

from __future__ import annotations

from commands.options import (
    CacheOption,
    MovedDataOption,
    MovedPartsOption,
    MovedTestOption,
    ResultsOption,
    StorageOption,
    StudyOption,
    find_study,
)
from tuning.folder import RESULTS


def export(
    *,
    study: StudyOption = None,
    data: MovedDataOption = None,
    test_data: MovedTestOption = None,
    parts: MovedPartsOption = None,
    storage: StorageOption = None,
    results: ResultsOption = RESULTS,
    cache: CacheOption = None,
) -> None:
    """Export the retrained winner as a self-contained folder: safetensors, ONNX, torch.export and a model card.

    Without `retrain` it exports the best trial, untested. Each format is checked before it is kept.
    """
    from commands import console as screen
    from commands.results import print_published
    from search_space import Config
    from selection import exporting
    from tuning import devices
    from tuning.trials import count_trials, read_trials

    console = screen.make_console()
    found = find_study(console, results, study, storage)
    with found.locked():
        winner = exporting.winner_of(found)
        session = found.reopen(
            [Config.from_dict(winner.config).image_size],
            data=data,
            test_data=test_data,
            parts=parts,
            slots=devices.slots("cpu", 1),
            cache_dir=cache,
            track=screen.track(console),
        )
        screen.print_pictures(console, session.pictures, classes=False)
        published = exporting.export(session, winner)
        print_published(console, published, winner, count_trials(read_trials(found.study)))
