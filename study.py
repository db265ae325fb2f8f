"""The command line: `python study.py` runs a study, the other commands look after what it reads and leaves.

This file is run again by every worker process, so it imports nothing heavy; each command imports what it uses.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CoercionError, CycloptsError, Group, Parameter, Token
from cyclopts.help import DefaultFormatter, PanelSpec
from cyclopts.validators import Number
from rich.box import Box

from data import DataError
from tuning import StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from data.cache import CacheHandle
    from data.catalog import Catalog
    from data.split import Split
    from search_space import Config, Profile
    from selection.fixed_runs import FixedRun, Trained
    from tuning.devices import Slot
    from tuning.searched import Searched

HERE = Path(__file__).resolve().parent

CHECKED = 64
"""Pictures on which the formats of a bundle are compared."""

_NO_BOX = Box("\n".join(["    "] * 8))

app = App(
    name="study.py",
    help="""Finds the best small CNN for your own pictures.

    One folder of pictures per class in, a finished Optuna study out. Run the same command again after anything that
    interrupted it: it goes on where it was.
    """,
    usage="Usage: python study.py [COMMAND] [OPTIONS]",
    version_flags=[],
    help_format="markdown",
    help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=_NO_BOX, border_style="bold", padding=(0, 0, 0, 3))),
)
_WHAT = Group("What is studied", sort_key=1)
_FAR = Group("How far it goes", sort_key=2)
_AGAIN = Group("What is trained again", sort_key=2)
_SHOWN = Group("What is shown", sort_key=2)
_HOW = Group("How it searches", sort_key=3)
_WHERE = Group("Where it runs and what it leaves", sort_key=4)


def _choice(group: Group) -> Parameter:
    """An option that names one of a few; its help text says which."""
    return Parameter(group=group, metavar="NAME", show_choices=False)


def _whole(_: object, tokens: Sequence[Token]) -> int:
    """Reads a whole number; left to itself, cyclopts takes 1.5 trials for 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise CoercionError(token=tokens[0], target_type=int) from None


def _count(group: Group, least: int = 1) -> Parameter:
    return Parameter(group=group, metavar="N", converter=_whole, validator=Number(gte=least, lt=2**32))


def _amount(group: Group, metavar: str = "N") -> Parameter:
    return Parameter(group=group, metavar=metavar, validator=Number(gt=0))


def _flag(group: Group, name: str | None = None) -> Parameter:
    return Parameter(name=name, group=group, negative="", show_default=False)


# Options that several commands share, explained once.
TestOption = Annotated[
    Path | None,
    Parameter(
        name="--test-data",
        group=_WHAT,
        metavar="PATH",
        help="An official test set, a folder of the same class folders. The study does not look at it.",
    ),
]
CacheOption = Annotated[
    Path | None,
    Parameter(
        name="--cache",
        group=_WHERE,
        metavar="DIR",
        help="Where drawn and decoded pictures are kept. By default the user's cache folder.",
    ),
]
ResultsOption = Annotated[
    Path,
    Parameter(
        name="--results",
        group=_WHERE,
        metavar="DIR",
        show_default=False,
        help="Where studies keep their folders. By default results/ beside study.py.",
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    _choice(_WHERE),
    Parameter(help='Where networks run: "cpu", "cuda", "mps", or "auto", the fastest that is there.'),
]
WorkersOption = Annotated[
    int | None,
    _count(_WHERE),
    Parameter(help="How many trials run at once. By default one per CPU core, or one per GPU; more share the GPUs."),
]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16"],
    _choice(_WHERE),
    Parameter(help='In what networks are trained: "auto" is bfloat16 where the hardware multiplies it, else float32.'),
]
# Of the commands that come after a study.
SearchedOption = Annotated[
    str | None,
    Parameter(name="--study", group=_WHAT, metavar="NAME", help="Which study. By default the one run last."),
]
PlaceOption = Annotated[
    str | None,
    Parameter(
        name="--data",
        group=_WHAT,
        metavar="PATH|NAME",
        help="Where its pictures are now. By default where they were.",
    ),
]
TestPlaceOption = Annotated[
    Path | None,
    Parameter(
        name="--test-data",
        group=_WHAT,
        metavar="PATH",
        help="Where its official test set is now. By default where it was.",
    ),
]
StorageOption = Annotated[
    str | None,
    Parameter(
        name="--storage",
        group=_WHERE,
        metavar="URL",
        help="The study's database, where it was run with one that has a password.",
    ),
]


@app.default
def run(
    *,
    data: Annotated[str, Parameter(group=_WHAT, metavar="PATH|NAME")] = "field-guide",
    test_data: TestOption = None,
    pictures: Annotated[int | None, _count(_WHAT)] = None,
    study: Annotated[str | None, Parameter(group=_WHAT, metavar="NAME")] = None,
    profile: Annotated[Literal["auto", "quick", "laptop", "gpu"], _choice(_WHAT)] = "auto",
    trials: Annotated[int, _count(_FAR)] = 40,
    epochs: Annotated[int | None, _count(_FAR)] = None,
    timeout: Annotated[float | None, _amount(_FAR, "MINUTES")] = None,
    patience: Annotated[int | None, _count(_FAR)] = None,
    target: Annotated[float | None, Parameter(group=_FAR, metavar="PERCENT", validator=Number(gt=0, lte=100))] = None,
    max_params: Annotated[float | None, _amount(_HOW)] = None,
    max_flops: Annotated[float | None, _amount(_HOW)] = None,
    sampler: Annotated[Literal["tpe", "random"], _choice(_HOW)] = "tpe",
    pruner: Annotated[Literal["median", "asha", "none"], _choice(_HOW)] = "median",
    audit_pruner: Annotated[int | None, _count(_HOW)] = None,
    seed: Annotated[int, _count(_HOW, least=0)] = 0,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    storage: Annotated[str | None, Parameter(group=_WHERE, metavar="URL")] = None,
    results: ResultsOption = HERE / "results",
    cache: CacheOption = None,
) -> None:
    """Run a study, or go on with it: the default command.

    Parameters
    ----------
    data
        A folder with one folder of pictures per class; or "field-guide", nine genera of mushrooms drawn on the spot; or
        "kaggle", photographs of the same genera, downloaded.
    pictures
        How many pictures are used, at most. By default as many as the profile says.
    study
        What the study is called, and its folder under results/. By default the data's name.
    profile
        What a trial may cost: "quick", 40 trials in ten minutes on two CPU cores; "laptop", in a few hours; "gpu", the
        full resolution; "auto", gpu with CUDA and else quick. PROFILES in search_space.py has the figures.
    trials
        Trials in all, restarts included. A trial counts when it was trained, to its end or until it was pruned.
    epochs
        Epochs of a trial that is not pruned. By default the profile's.
    timeout
        Leave after so many minutes; the same command goes on later. By default there is no limit.
    patience
        Ask for no more trials once this many in a row have brought no better one. By default there is no limit.
    target
        Ask for no more trials once one has reached this top-1 on the validation part.
    max_params
        Networks with more parameters, such as 3e5, are not trained, and the sampler learns to avoid them. By default
        there is no limit.
    max_flops
        The same for the forward FLOPs of one picture, a multiply-add counting as two. By default the profile's.
    sampler
        How configurations are chosen: "tpe" learns from the trials that have ended, "random" does not.
    pruner
        Which trials end early: "median", those below the median of the others at the same epoch; "asha", by successive
        halving; "none".
    audit_pruner
        When the trials are done, train so many of the pruned ones to their end and say how often the pruner was wrong.
    seed
        Seeds the search and every trial. One worker on a CPU repeats a study bit for bit.
    storage
        The study's database, such as postgresql://user@host/name. By default an SQLite file in its folder.
    """
    from commands import console as screen
    from commands import results as finals
    from data.sources import NAMES
    from reporting.study_note import StudyNote
    from reporting.trial_note import TrialNotes
    from search_space import known_good, suggest
    from selection import pruner_audit as audit
    from tuning import devices, forecast, identity, sampling, scheduling
    from tuning import storage as stored
    from tuning.coordinator import Coordinator, Ending, Plan, search
    from tuning.folder import study_folder
    from tuning.searched import Searched
    from tuning.settings import Settings
    from tuning.workers import LocalWorkers

    if audit_pruner is not None and pruner == "none":
        raise StudyError("--audit-pruner trains pruned trials to their end, but with --pruner none there are none")
    console = screen.make_console()
    slots = devices.slots(device, workers, precision)
    profile_name, limits = _limits(profile, slots[0].device, epochs, pictures)
    found = _read(console, data, test_data, _cache(cache), limits.pictures)
    name = found.name if study is None else study
    folder = study_folder(results, name)
    with stored.sole_coordinator(folder):
        screen.print_catalog(console, found.catalog, found.split)
        limits = _fitting(console, limits, found.catalog)
        handle = _decode(console, found, limits.sizes, _cache(cache))
        plan = Plan(
            trials=trials,
            timeout=timeout * 60 if timeout else None,
            patience=patience,
            target=target / 100 if target else None,
            max_parameters=max_params,
            max_flops=max_flops or limits.max_flops,
        )
        draw = partial(suggest, profile=limits, classes=len(handle.classes))
        facts = {
            "data": _pictures(found, handle),
            "profile": profile_name,
            "epochs": limits.epochs,
            "views": limits.views,
            "batch size": limits.batch_size,
            "max params": plan.max_parameters,
            "max flops": plan.max_flops,
            "sampler": sampler,
            "pruner": pruner,
            "seed": seed,
        }
        url = storage or _sqlite(console, folder)
        with stored.explained(url):
            opened = stored.open_study(
                url,
                name,
                sampler=sampling.SAMPLERS[sampler](seed),
                pruner=scheduling.PRUNERS[pruner](limits.epochs),
                identity=facts | identity.describe_space(draw),
                first_trials=known_good(limits),
            )
            found.catalog.write_report(folder / "data_report.csv", found.split)
            begun = Settings(
                data=data if data in NAMES else str(Path(data).expanduser().absolute()),
                test_data=str(test_data.expanduser().absolute()) if test_data else None,
                pictures=limits.pictures,
                storage=stored.without_password(stored.absolute(storage)) if storage else None,
                words=_words(),
            )
            begun.save(folder)
            coordinator = Coordinator(
                opened,
                workers=LocalWorkers(slots),
                scheduler=scheduling.PrunerScheduler(),
                assign=search(draw, seed),
                plan=plan,
                data=handle,
                folder=folder,
                describe=TrialNotes(folder, handle),
            )
            expected = 0.0
            if coordinator.wanted:
                first = scheduling.first_pruning(pruner, limits.epochs)
                trained = opened.get_trials(deepcopy=False)
                expected = forecast.seconds_so_far(trained, slots[0]) or forecast.seconds_per_trial(
                    draw,
                    feasible=plan.feasible,
                    pictures=len(found.split.train),
                    pruned=first is not None,
                    slots=slots,
                )
                screen.print_plan(
                    console, name, plan, limits.epochs, first, slots, wanted=coordinator.wanted, expected=expected
                )
            note = StudyNote(opened, folder, catalog=found.catalog, split=found.split, profile=limits, trials=trials)
            if coordinator.wanted:
                note.write_note()
            shown = screen.Screen(console, opened, trials=trials, slots=len(slots), expected=expected)
            try:
                received = screen.follow(coordinator, shown, note.receive)
            finally:
                note.update()
                stored.write_trials_csv(opened, folder / "trials.csv")
            screen.print_end(console, opened, folder, coordinator.ending, _words(), _places(name, results))
            if audit_pruner is not None and coordinator.ending in (Ending.TRIALS, Ending.TARGET, Ending.PATIENCE):
                searched = Searched(study=opened, folder=folder, url=url, settings=begun)
                train = _Trainer(console=console, searched=searched, data=handle, slots=slots)
                audited = train(audit.KIND, stored.METRIC, audit.runs(opened, audit_pruner))
                finals.print_audit(console, audit.verdict(opened, audited))
    if received is not None:
        raise SystemExit(128 + received)


@app.command(usage="Usage: python study.py retrain [OPTIONS]")
def retrain(
    *,
    study: SearchedOption = None,
    data: PlaceOption = None,
    test_data: TestPlaceOption = None,
    trial: Annotated[int | None, _count(_AGAIN, least=0)] = None,
    finalists: Annotated[int, _count(_AGAIN)] = 3,
    seeds: Annotated[int, _count(_AGAIN)] = 3,
    baseline: Annotated[bool, _flag(_AGAIN)] = False,
    look_again: Annotated[bool, _flag(_AGAIN)] = False,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    storage: StorageOption = None,
    results: ResultsOption = HERE / "results",
    cache: CacheOption = None,
) -> None:
    """Train the best trials again over several seeds, then the winner on all but the test part, and test it once.

    Interrupted, the same command goes on.

    Parameters
    ----------
    trial
        Take this trial instead of the best ones. It is first trained once more just as it was.
    finalists
        How many of the best trials are trained again.
    seeds
        With how many seeds each. The best mean validation accuracy wins.
    baseline
        Train the two recipes that every study begins with in the same way, to compare with; the one improved by hand
        without its warm-up, too.
    look_again
        Look at the test part although other networks have been tested on it before, which flatters the better ones.
    """
    from commands import console as screen
    from commands import results as finals
    from reporting.study_note import show_finalists
    from selection import finalists as best
    from selection import retraining
    from tuning import devices
    from tuning import storage as stored

    console = screen.make_console()
    slots = devices.slots(device, workers, precision)
    searched = _recall(console, results, study, storage)
    with stored.sole_coordinator(searched.folder), stored.explained(searched.url):
        searching = searched.study
        chosen = best.candidates(searching, finalists) if trial is None else [best.candidate(searching, trial)]
        chosen += best.baselines(searching) if baseline else []
        _, handle = _same_pictures(console, searched, data, test_data, _cache(cache), [one.config for one in chosen])
        train = _Trainer(console=console, searched=searched, data=handle, slots=slots)
        fixed = best.seeds(searching, seeds)

        if trial is not None:
            original = searching.get_trials()[trial]
            (again,) = train(retraining.FINALISTS, stored.METRIC, [best.replay(chosen[0], original)])
            finals.print_replay(console, original, again)
        runs = [run for one in chosen for run in one.runs(fixed)]
        ended = iter(train(retraining.FINALISTS, stored.METRIC, runs))
        standings = best.ranked(best.Standing(candidate=one, runs=tuple(islice(ended, seeds))) for one in chosen)
        won = standings[0]
        best.write_csv(standings, searched.folder / "finalists.csv")
        show_finalists(searching, searched.folder)
        finals.print_standings(console, standings)

        tested = [won, *(one for one in standings if one.candidate.baseline and one.complete)]
        runs = [run for one in tested for run in retraining.final_runs(one, fixed)]
        ended = iter(train(retraining.FINAL_RUNS, retraining.FINAL_METRIC, runs))
        trained = [retraining.Finals(candidate=one.candidate, runs=tuple(islice(ended, seeds))) for one in tested]
        counted = sum(map(stored.counts, searching.get_trials(deepcopy=False)))
        bench = retraining.Bench(data=handle, folder=searched.folder, device=slots[0].device)
        winner = retraining.conclude(won, trained[0], bench, pictures=searched.pictures, trials=counted)
        winner, earlier = retraining.look_counted(searched, winner, trained, bench, again=look_again)
        winner.save(searched.folder)
        if earlier:
            finals.print_not_tested(console, earlier)
        else:
            finals.print_tested(console, winner, handle.classes)
        finals.print_next(console, searched.folder, _places(searched.name, results))


@app.command(usage="Usage: python study.py export [OPTIONS]")
def export(
    *,
    study: SearchedOption = None,
    data: PlaceOption = None,
    test_data: TestPlaceOption = None,
    storage: StorageOption = None,
    results: ResultsOption = HERE / "results",
    cache: CacheOption = None,
) -> None:
    """Make the retrained winner a folder that needs nothing else: safetensors, ONNX, torch.export and a model card.

    A study that has not been retrained gives its best trial, untested. Each format is proven before it is kept.
    """
    from commands import console as screen
    from commands import results as finals
    from data.cache import open_part
    from model.export.bundle import Bundle, BundleError
    from model.export.formats import publish
    from search_space import Config
    from selection import retraining
    from tuning import storage as stored
    from tuning.environment import processor, versions

    console = screen.make_console()
    searched = _recall(console, results, study, storage)
    with stored.sole_coordinator(searched.folder), stored.explained(searched.url):
        winner = retraining.Winner.load(searched.folder) or retraining.best_so_far(searched.study, searched.pictures)
        if winner.pictures != searched.pictures:
            raise StudyError(
                f"the winner must be of the study's own pictures, but {searched.folder / 'retrained.json'} is of "
                f"others ({winner.pictures}); python study.py retrain makes it anew"
            )
        config, weights = Config.from_dict(winner.config), searched.folder / winner.weights
        found, handle = _same_pictures(console, searched, data, test_data, _cache(cache), [config])
        network = retraining.load_network(config, weights)
        bench = retraining.Bench(data=handle, folder=searched.folder, device="cpu")
        bundle = Bundle(
            model=config.model,
            classes=handle.classes,
            image_size=config.image_size,
            temperature=winner.temperature or retraining.fit_temperature(config, [weights], bench),
            provenance={
                "study": searched.name,
                "trial": winner.trial,
                "data": {
                    "name": found.name,
                    "source": found.citation,
                    "pictures": {part: len(places) for part, places in found.split.named()},
                    "trained on": " + ".join(winner.trained_on),
                    "fingerprint": handle.fingerprint,
                    "split": handle.split,
                },
                "epochs": winner.epochs,
                "seed": winner.seed,
                "config": winner.config,
                "validation": winner.validation,
                "trained with": winner.environment,
                "exported with": versions(),
                "exported on": processor(),
            },
            results=winner.results and winner.results | {"validation": winner.validation},
        )
        part = open_part(handle, config.image_size, "validation")
        every = max(1, len(part.indices) // CHECKED)  # they lie class by class
        try:
            published = publish(
                searched.folder / "best", bundle, network.state_dict(), part.images[part.indices[::every][:CHECKED]]
            )
        except BundleError as error:
            raise StudyError(str(error)) from error
        finals.print_published(console, published, winner, sum(map(stored.counts, searched.study.get_trials())))


@app.command(usage="Usage: python study.py predict PICTURE-OR-FOLDER ... [OPTIONS]")
def predict(
    *pictures: Annotated[Path, Parameter(metavar="PICTURE-OR-FOLDER")],
    model: Annotated[Path | None, Parameter(group=_WHAT, metavar="PATH")] = None,
    study: SearchedOption = None,
    top: Annotated[int, _count(_SHOWN)] = 3,
    as_json: Annotated[bool, _flag(_SHOWN, "--json")] = False,
    as_csv: Annotated[bool, _flag(_SHOWN, "--csv")] = False,
    device: DeviceOption = "cpu",
    results: ResultsOption = HERE / "results",
) -> None:
    """Say what is on pictures, with an exported bundle.

    Parameters
    ----------
    pictures
        Picture files, and folders of them.
    model
        The bundle's folder, wherever it is. By default the one exported from a study.
    study
        Which study's bundle. By default that of the one run last.
    top
        How many classes are shown, the most probable first.
    as_json
        One JSON array instead of a table.
    as_csv
        CSV instead of a table.
    """
    from commands import predictions
    from model.export.bundle import BundleError
    from model.predict import Classifier, PredictError, Prediction, pictures_in
    from tuning import devices
    from tuning.settings import recall

    if not pictures:
        raise StudyError("predict needs at least one picture or folder; see python study.py predict --help")
    if as_json and as_csv:
        raise StudyError("predictions have one form, but got --json and --csv; choose one of them")
    failures: list[Prediction] = []
    shown = 0

    def noted(found: Iterable[Prediction]) -> Iterator[Prediction]:
        nonlocal shown
        for one in found:
            shown += one.error is None
            failures.extend([one] * (one.error is not None))
            yield one

    try:
        folder = model or recall(results, study)[0] / "best"
        classifier = Classifier.load(folder, devices.slots(device, 1)[0].device)
        if model is None:
            print(f"with {folder}", file=sys.stderr)
        classes = classifier.bundle.classes
        top = min(top, len(classes))
        found = noted(classifier.predict(pictures_in(pictures), top=top))
        if as_json:
            predictions.write_json(found, sys.stdout)
        elif as_csv:
            predictions.write_csv(found, top, sys.stdout)
        else:
            predictions.write_table(found, classes, top, sys.stdout)
        sys.stdout.flush()
    except (BundleError, PredictError) as error:
        raise StudyError(str(error)) from error
    except BrokenPipeError:
        # The reader has gone, as `| head` does. What is left in the buffer is flushed at exit, and must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    if failures:
        print(f"{len(failures)} of {len(failures) + shown} pictures could not be used", file=sys.stderr)
    if not shown:
        raise StudyError("no picture could be classified; name at least one, or a folder that has some")


@app.command(usage="Usage: python study.py report [OPTIONS]")
def report(
    *,
    study: SearchedOption = None,
    storage: StorageOption = None,
    results: ResultsOption = HERE / "results",
) -> None:
    """Write what a study has found into report.html, one page that opens offline, and interactive plots beside it."""
    from commands import console as screen
    from reporting import page
    from tuning.storage import explained

    console = screen.make_console()
    searched = _recall(console, results, study, storage)
    with explained(searched.url):
        written = page.write(
            searched.study,
            searched.folder,
            study_options=_places(searched.name, results),
            argv=searched.settings.words or None,
        )
        console.print(str(written), markup=False, soft_wrap=True)


@app.command(usage="Usage: python study.py dashboard [OPTIONS]")
def dashboard(
    *,
    study: SearchedOption = None,
    port: Annotated[int | None, _count(_WHERE)] = None,
    storage: StorageOption = None,
    results: ResultsOption = HERE / "results",
) -> None:
    """Look at a study in the browser, while it runs too: optuna-dashboard with the study's pictures and notes.

    It answers on this machine alone. Ctrl-C ends it.

    Parameters
    ----------
    port
        Where it answers. By default 8080, or any other that is free.
    """
    import warnings
    import webbrowser

    from commands import console as screen
    from reporting import dashboard as served

    console = screen.make_console()
    searched = _recall(console, results, study, storage)
    try:
        server, address = served.make(searched.study, searched.folder / "artifacts", port)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StudyError(f"--port names a free port, but {port} is not ({reason}); leave it away to get one") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", module=r"optuna\.")  # of its importances, where there are few trials
    with server, suppress(KeyboardInterrupt):
        console.print(f"{address}  (Ctrl-C ends it)", markup=False, soft_wrap=True)
        if served.on_a_desktop():
            webbrowser.open(address)
        server.serve_forever()


@app.command(name="check-data", usage="Usage: python study.py check-data [OPTIONS]")
def check_data(
    *,
    data: Annotated[str, Parameter(group=_WHAT, metavar="PATH|NAME")] = "field-guide",
    test_data: TestOption = None,
    report: Annotated[Path | None, Parameter(group=_WHERE, metavar="FILE")] = None,
    cache: CacheOption = None,
) -> None:
    """Look at every picture, and say which a study would leave out and why. Changes nothing.

    Parameters
    ----------
    data
        A folder with one folder of pictures per class; or "field-guide", or "kaggle".
    report
        Write the verdict on every file there, as CSV.
    cache
        Where the scan is remembered. By default the user's cache folder.
    """
    from commands import console as screen

    console = screen.make_console()
    pictures = _read(console, data, test_data, _cache(cache), None)
    screen.print_catalog(console, pictures.catalog, pictures.split)
    screen.print_left_out(console, pictures.catalog, report)
    if report is not None:
        pictures.catalog.write_report(report, pictures.split)


@app.command(usage="Usage: python study.py clean [NAME ...] [OPTIONS]")
def clean(
    *names: Annotated[str, Parameter(metavar="NAME")],
    results: ResultsOption = HERE / "results",
    cache: CacheOption = None,
) -> None:
    """Show what studies and caches weigh, and remove what is named.

    Parameters
    ----------
    names
        What to remove, by the names that this command lists, without asking; with a study goes its exported bundle.
        Without any, nothing is removed.
    """
    from commands import console as screen
    from tuning import cleaning

    console = screen.make_console()
    items = cleaning.find(results, _cache(cache))
    chosen = cleaning.choose(items, names)
    if not chosen:
        screen.print_weights(console, items)
    for item in chosen:
        cleaning.remove(item)
        screen.print_removed(console, item)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a command reads before it does anything else."""

    name: str
    citation: str
    catalog: Catalog
    """Every file with its verdict; kept are those that the profile uses."""
    split: Split


def _read(console: Console, data: str, test_data: Path | None, cache: Path, limit: int | None) -> _Found:
    """Source -> catalog -> split."""
    from commands.console import track
    from data import catalog, sources
    from data.split import split

    source = sources.resolve(data, cache_dir=cache, pictures=limit, test_data=test_data, track=track(console))
    scanned = catalog.scan(source, cache_dir=cache, track=track(console))
    used = scanned.limited(limit)
    available = max(source.available or 0, len(scanned.kept))
    some = f"{len(used.kept):,} of {available:,}" if len(used.kept) < available else f"{len(used.kept):,}"
    console.print(f"{source.name}: {some} pictures of {len(used.classes)} classes", style="bold", highlight=False)
    return _Found(name=source.name, citation=source.citation, catalog=used, split=split(used))


def _decode(console: Console, pictures: _Found, sizes: tuple[int, ...], cache: Path) -> CacheHandle:
    from commands.console import track
    from data.cache import build

    return build(pictures.catalog, pictures.split, sizes, cache_dir=cache, track=track(console))


def _cache(chosen: Path | None) -> Path:
    from platformdirs import user_cache_path

    return chosen or user_cache_path("mushroom-study", appauthor=False)


def _recall(console: Console, results: Path, study: str | None, storage: str | None) -> Searched:
    """The study that is named, else the one run last; says which."""
    from tuning.searched import find

    searched = find(results, study, storage)
    console.print(f"Study '{searched.name}' in {searched.folder}", style="bold", markup=False, soft_wrap=True)
    return searched


def _pictures(found: _Found, handle: CacheHandle) -> str:
    """Which pictures, split how: what a study may not change."""
    return f"{len(found.catalog.kept)} pictures, fingerprint {handle.fingerprint}, split {handle.split}"


def _same_pictures(
    console: Console,
    searched: Searched,
    data: str | None,
    test_data: Path | None,
    cache: Path,
    configs: list[Config],
) -> tuple[_Found, CacheHandle]:
    """The study's own pictures at the sizes of these configurations. Raises StudyError where they have changed."""
    from data.changes import describe

    begun = searched.settings
    place = data or begun.data
    tested = test_data or (Path(begun.test_data) if begun.test_data else None)
    found = _read(console, place, tested, cache, begun.pictures)
    handle = _decode(console, found, tuple({config.image_size for config in configs}), cache)
    then, now = searched.pictures, _pictures(found, handle)
    if then != now:
        changes = describe(searched.folder / "data_report.csv", found.catalog, found.split)
        raise StudyError(
            f"what comes after a study uses its own pictures, but {place} has others: {then} -> {now}"
            f"{f' ({changes})' if changes else ''}; restore them, say where they are now with --data PATH, or begin "
            "another study with --study NAME"
        )
    return found, handle


@dataclass(frozen=True, kw_only=True)
class _Trainer:
    """Trains what is missing of runs that are decided beforehand."""

    console: Console
    searched: Searched
    data: CacheHandle
    slots: list[Slot]

    def __call__(self, kind: str, metric: str, runs: list[FixedRun]) -> Trained:
        """In the study's sibling of this kind; returns the trial of each run. Leaves the program when interrupted."""
        from commands import console as screen
        from reporting.trial_note import TrialNotes
        from selection import fixed_runs
        from tuning.coordinator import Coordinator, Plan
        from tuning.folder import study_folder
        from tuning.scheduling import PrunerScheduler
        from tuning.settings import typed
        from tuning.storage import counts
        from tuning.workers import LocalWorkers

        folder = study_folder(self.searched.folder, kind)
        name = f"{self.searched.name}-{kind}"
        pool = fixed_runs.open_pool(self.searched.url, name, metric, runs, folder, self.searched.pictures)
        coordinator = Coordinator(
            pool,
            workers=LocalWorkers(self.slots),
            scheduler=PrunerScheduler(),
            assign=fixed_runs.assign,
            plan=Plan(trials=None),
            data=self.data,
            folder=folder,
            keep=len(pool.trials),
            describe=TrialNotes(self.searched.folder, self.data),
        )
        if wanted := coordinator.wanted:
            expected = fixed_runs.seconds(pool) / wanted
            screen.print_runs(self.console, kind, wanted, self.slots, expected)
            shown = screen.Screen(
                self.console,
                pool,
                trials=wanted + sum(map(counts, pool.get_trials(deepcopy=False))),
                slots=len(self.slots),
                expected=expected,
                searches=False,
            )
            received = screen.follow(coordinator, shown)
            if received is not None:
                self.console.print(f"Go on: {typed(_words())}", markup=False, soft_wrap=True)
                raise SystemExit(128 + received)
        return fixed_runs.finished(pool, runs)


def _limits(profile: str, device: str, epochs: int | None, pictures: int | None) -> tuple[str, Profile]:
    from search_space import PROFILES

    name = ("gpu" if device.startswith("cuda") else "quick") if profile == "auto" else profile
    chosen = PROFILES[name]
    return name, replace(chosen, epochs=epochs or chosen.epochs, pictures=pictures or chosen.pictures)


def _fitting(console: Console, limits: Profile, catalog: Catalog) -> Profile:
    """Leaves out the image sizes that would only enlarge the pictures, and says so."""
    fitting = limits.within(catalog.median_short_side)
    if fitting.sizes != limits.sizes:
        console.print(
            f"Half of the pictures are at most {catalog.median_short_side} pixels on their shorter side, "
            f"so image sizes are {', '.join(map(str, fitting.sizes))} instead of {', '.join(map(str, limits.sizes))}.",
            highlight=False,
        )
    return fitting


def _sqlite(console: Console, folder: Path) -> str:
    """The study's own database, with a warning where its locks cannot be trusted."""
    from tuning.folder import sqlite_url
    from tuning.storage import network_file_system

    kind = network_file_system(folder)
    if kind:
        console.print(
            f"Warning: {folder} is on a network file system ({kind}), on which SQLite can lose a study; "
            "use --results DIR on a local disk, or --storage with PostgreSQL.",
            style="yellow",
            markup=False,
        )
    return sqlite_url(folder)


def _places(study: str, results: Path) -> str:
    """The options by which another command finds a study."""
    elsewhere = [] if results == HERE / "results" else ["--results", str(results)]
    return shlex.join(["--study", study, *elsewhere])


def _words() -> list[str]:
    """What was typed after `study.py`, but for passwords."""
    from tuning.storage import without_password

    return list(map(without_password, sys.argv[1:]))


def main() -> None:
    """Turns errors of the user's world into one line and exit code 2; anything else keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        # Where the terminal's or log's encoding lacks a character of a name, an escape stands for it.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (DataError, StudyError) as error:
        message = str(error)
    except CycloptsError as error:
        from commands.mistyped import rule
        from tuning.storage import without_password

        message = without_password(rule(error, app))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    else:
        return
    from model.files import printable

    print(f"error: {printable(message)}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
