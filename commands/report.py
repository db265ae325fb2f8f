"""`python study.py report`: writes the report of a study."""

from __future__ import annotations

from commands.options import ResultsOption, StorageOption, StudyOption, find_study, study_options
from tuning.folder import RESULTS


def report(
    *,
    study: StudyOption = None,
    storage: StorageOption = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Write the report of a study: report.html, one page that opens offline, and interactive plots beside it."""
    from commands import console as screen
    from reporting import page
    from tuning.database import explained

    console = screen.make_console()
    found = find_study(console, results, study, storage)
    with explained(found.url):
        written = page.write(
            found.study,
            found.folder,
            study_options=study_options(found.name, results),
            argv=found.settings.argv or None,
        )
    console.print(str(written), markup=False, soft_wrap=True)
