"""`python study.py predict`: classifies pictures with an exported bundle."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from commands.options import DATA, SHOWN, DeviceOption, ResultsOption, StudyOption, count, flag
from commands.output import essential_output
from tuning import StudyError
from tuning.folder import RESULTS, make_folder, replace_file

if TYPE_CHECKING:
    from model.predict import Prediction

MUCH = 0.01
"""Share of a picture's values outside the range that is worth a word; one in a thousand at each end is the rule."""
LONGEST_STEM = 50
"""Number of characters of a picture's name that are kept: four bytes each, they fit every file system."""


def predict(
    *pictures: Annotated[Path, Parameter(metavar="PICTURE-OR-FOLDER")],
    model: Annotated[Path | None, Parameter(group=DATA, metavar="PATH")] = None,
    study: StudyOption = None,
    top: Annotated[int, count(SHOWN)] = 3,
    as_json: Annotated[bool, flag(SHOWN, "--json")] = False,
    as_csv: Annotated[bool, flag(SHOWN, "--csv")] = False,
    explain: Annotated[Path | None, Parameter(group=SHOWN, metavar="DIR")] = None,
    device: DeviceOption = "cpu",
    results: ResultsOption = RESULTS,
) -> None:
    """Classify pictures with an exported bundle.

    Parameters
    ----------
    pictures
        Picture files, and folders of pictures.
    model
        Folder of a bundle. By default the one exported from the study.
    top
        Number of classes to show, the most probable first.
    as_json
        Print one JSON array instead of a table.
    as_csv
        Print CSV instead of a table.
    explain
        Folder to write one image per picture into: what the network sees of the picture, and where it looked.
    """
    from commands import predictions
    from model.export.bundle import BundleError
    from model.files import printable
    from model.predict import Classifier, PredictError, pictures_in
    from tuning import devices
    from tuning.settings import STUDY_ID, recall

    if not pictures:
        raise StudyError("no pictures to classify: name a picture or folder; see python study.py predict --help")
    if as_json and as_csv:
        raise StudyError("got both --json and --csv: choose one of them")
    if model is not None:
        for option, given in (("--study", study), ("--results", None if results == RESULTS else results)):
            if given is not None:
                raise StudyError(f"{option} {given} has no effect with --model {model}: omit one of them")
    if explain is not None:
        _refuse_within(explain, pictures)
        make_folder(explain)
    failures = shown = 0
    several: list[Prediction] = []
    outside: list[Prediction] = []

    def counted(found: Iterable[Prediction]) -> Iterator[Prediction]:
        nonlocal failures, shown
        for one in found:
            shown += one.error is None
            failures += one.error is not None
            if one.traits.pages > 1:
                several.append(one)
            if one.traits.clipped > MUCH:
                outside.append(one)
            if explain is not None and one.error is None:
                drawn = classifier.explain(one.path, one.classes[0][0])
                name = f"{shown:04d} {one.path.stem[:LONGEST_STEM]}.png"
                replace_file(explain / name, partial(drawn.save, format="PNG"))
            yield one

    try:
        kept = None
        if model is None:
            model, kept = recall(results, study)
            model /= "best"
        classifier = Classifier.load(model, devices.slots(device, 1)[0].device)
        if kept is not None:
            made_by = classifier.bundle.provenance.get(STUDY_ID)
            if None not in (made_by, kept.study_id) and made_by != kept.study_id:
                raise StudyError(
                    f"{model} was exported by another study than the one in {model.parent}: run python study.py "
                    f"export again, or use it all the same with --model {shlex.quote(str(model))}"
                )
            print(f"Using {model}", file=sys.stderr)
        bundle = classifier.bundle
        top = min(top, len(bundle.classes))
        found = counted(classifier.predict(pictures_in(pictures), top=top))
        with essential_output():
            if as_json:
                predictions.write_json(found, sys.stdout)
            elif as_csv:
                predictions.write_csv(found, top, sys.stdout)
            else:
                answers = (bundle.sure, bundle.strangest) != (None, None)
                predictions.write_table(found, bundle.classes, top, sys.stdout, answers=answers)
    except (BundleError, PredictError) as error:
        raise StudyError(str(error)) from error
    for found, what, then in (
        (several, "several pictures", "only the first was classified"),
        (outside, "many values outside the range of the training pictures", "they were clipped"),
    ):
        if found:
            where = f"in {len(found)} of {failures + shown} files, such as {printable(found[0].path)}"
            print(f"{what} {where}: {then}", file=sys.stderr)
    if explain is not None and shown:
        print(f"Where the network looked: {printable(explain)}", file=sys.stderr)
    if failures:
        print(f"{failures} of {failures + shown} pictures could not be classified", file=sys.stderr)
    if not shown:
        raise StudyError("no picture was classified: name at least one picture, or a folder with pictures")


def _refuse_within(explain: Path, pictures: Iterable[Path]) -> None:
    """Raise StudyError for a folder whose own pictures would be classified, too."""
    for given in pictures:
        if given.is_dir() and explain.resolve().is_relative_to(given.resolve()):
            raise StudyError(
                f"--explain {shlex.quote(str(explain))} is within {shlex.quote(str(given))}, whose pictures are "
                "classified: choose another folder"
            )
