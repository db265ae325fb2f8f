"""The dashboard as a command and as a person sees it: on this machine alone, complete, live, and text alone.

A tiny study that was run, with others in its database -> one `study.py dashboard` -> requests, and Chromium
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState
from optuna_dashboard import get_note
from studies import RunningCommand, Tiny, prepare, recorded, run_here, steady_threads, until
from test_trial_note import HOSTILE, record

from data import catalog, sources
from data.split import split
from reporting.dashboard import PORT
from reporting.study_note import StudyNote
from reporting.trial_note import TrialNotes
from search_space import PROFILES
from tests.stress.made_up_studies import careless_storage, made_up_study, made_up_trials

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
seen = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not on PATH")

pytestmark = [
    # selenium leaves sockets to be closed by the interpreter.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

INSULT = "<img src=x onerror=alert(1)><script>alert(2)</script> ![](x) & \"'"
"""A study's name."""


@dataclass(kw_only=True)
class Served:
    """A running dashboard."""

    tiny: Tiny
    begun: RunningCommand
    address: str
    """Address of the page of the study that was run."""

    @property
    def port(self) -> int:
        return int(self.address.split(":")[2].partition("/")[0])

    def study(self, name: str) -> optuna.Study:
        return optuna.load_study(study_name=name, storage=f"sqlite:///{self.tiny.study_folder / 'study.db'}")

    def page(self, name: str) -> str:
        """Return the address of another study's page."""
        return f"{self.address.rpartition('/')[0]}/{self.study(name)._study_id}"


def words(tiny: Tiny, *more: str) -> list[str]:
    return ["dashboard", "--study", "tiny", "--results", str(tiny.results), *more]


@contextlib.contextmanager
def serving(tiny: Tiny, *more: str) -> Iterator[Served]:
    """Start the command and wait until it answers."""
    with tiny.start(argv=words(tiny, *more)) as begun:
        begun.until(lambda: re.search(r"http\S+(?=  \()", begun.text), "the address")
        served = Served(tiny=tiny, begun=begun, address=re.findall(r"http\S+(?=  \()", begun.text)[0])
        assert ask(served.port, "/")[0] in (200, 302)
        yield served


def ask(port: int, path: str, host: str | None = None) -> tuple[int, bytes]:
    """Return status and body for a browser that calls the server by the name `host`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    with steady_threads():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return a study that the command has run; beside it, one without a finished trial, one pruned and one hostile."""
    study = prepare(tmp_path_factory.mktemp("dashboard"))
    finished = study.command("--workers", "1", "--trials", "2")
    assert (finished.code, finished.err) == (0, "")
    storage = optuna.storages.RDBStorage(f"sqlite:///{study.study_folder / 'study.db'}")
    optuna.create_study(study_name="begun", storage=storage, direction="maximize").ask()
    pruned = optuna.create_study(study_name="pruned", storage=storage, direction="maximize")
    for _ in range(3):
        trial = pruned.ask()
        trial.report(0.3, 0)
        pruned.tell(trial, state=TrialState.PRUNED)
    insulted = optuna.create_study(study_name=INSULT, storage=storage, direction="maximize")
    insulted.add_trials(made_up_trials(4))
    trial = insulted.ask({INSULT: optuna.distributions.CategoricalDistribution([INSULT, "plain"])})
    TrialNotes(study.study_folder, replace(study.data, classes=HOSTILE))(
        trial, record(classes=len(HOSTILE), reason=INSULT)
    )
    insulted.tell(trial, 0.99)
    (study.study_folder / "insulted").mkdir()
    (study.study_folder / "insulted" / "finalists.csv").write_text(
        f'name,outcome,top1\n"{INSULT.replace(chr(34), chr(34) * 2)}",complete,0.5\n', encoding="utf-8"
    )
    described(study, insulted, study.study_folder / "insulted", classes=HOSTILE)
    return study


def described(tiny: Tiny, study: optuna.Study, folder: Path, classes: Sequence[str] = ()) -> None:
    """Give a study its note and plots, as if its classes had these names."""
    cache = tiny.folder.parent / "cache"
    found = catalog.scan(sources.resolve(str(tiny.folder), cache_dir=cache, pictures=None), cache_dir=cache)
    names = dict(zip(found.classes, classes or found.classes, strict=False))
    named = replace(
        found,
        classes=tuple(names.values()),
        pictures=tuple(replace(one, label=names[one.label]) for one in found.pictures),
    )
    StudyNote(
        study,
        folder,
        catalog=named,
        split=split(found),
        profile=PROFILES["quick"].fitted(64, 1063),
        trials=len(study.get_trials(deepcopy=False)),
    ).update()


@pytest.fixture(scope="module")
def served(tiny: Tiny) -> Iterator[Served]:
    """Return a dashboard that was started while another program had the usual port."""
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # somebody else has it
            other.bind(("127.0.0.1", PORT))
            other.listen()
        with serving(tiny) as running:
            yield running


# -- the command


def test_it_prints_the_address_of_the_studys_page(served: Served) -> None:
    number = served.study("tiny")._study_id
    assert served.address == f"http://127.0.0.1:{served.port}/dashboard/studies/{number}"
    status, body = ask(served.port, f"/dashboard/studies/{number}")
    assert status == 200
    assert b"<title>Optuna Dashboard</title>" in body


def test_where_its_port_is_taken_it_has_another(served: Served) -> None:
    assert served.port != PORT


def test_it_listens_on_this_machine_alone(served: Served) -> None:
    process = psutil.Process(served.begun.process.pid)
    listening = [place.laddr for place in process.net_connections() if place.status == psutil.CONN_LISTEN]
    assert [(place.ip, place.port) for place in listening] == [("127.0.0.1", served.port)]


def test_the_machines_other_addresses_are_not_answered(served: Served) -> None:
    others = [
        place.address
        for places in psutil.net_if_addrs().values()
        for place in places
        if place.family == socket.AF_INET and not place.address.startswith("127.")
    ]
    if not others:
        pytest.skip("this machine has no other address")
    for other in others:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, served.port), timeout=10)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{}", "127.0.0.1.evil.example:{}", "localhost.:{}", "[::1]:{}", "", ":{}"]
)
def test_a_name_from_elsewhere_is_refused(served: Served, host: str) -> None:
    """A web page can point its own name at 127.0.0.1, and could then read and delete through the visitor's browser."""
    status, body = ask(served.port, "/api/studies", host.format(served.port))
    assert (status, body) == (403, b"This dashboard answers on this machine alone.\n")


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "localhost:9000", "localhost"])
def test_a_name_of_this_machine_is_answered(served: Served, host: str) -> None:
    """Also through a tunnel, which has another port; port 80 is left out of the name."""
    status, body = ask(served.port, "/api/studies", host.format(served.port))
    assert status == 200
    assert "tiny" in {study["study_name"] for study in json.loads(body)["study_summaries"]}


def test_it_serves_the_artifacts_of_every_trial(served: Served) -> None:
    study = served.study("tiny")
    trained = study.get_trials(states=[TrialState.COMPLETE])
    assert len(trained) == 2
    for trial in trained:
        metas = {meta.artifact_id: meta for meta in get_all_artifact_meta(trial, storage=study._storage)}
        addresses = re.findall(r"!\[[^]]*\]\(([^)]+)\)", get_note(optuna.Trial(study, trial._trial_id)))
        assert len(addresses) == len(metas) - 1 >= 2
        for address in addresses:
            status, body = ask(served.port, address)
            assert status == 200
            assert body == (served.tiny.study_folder / "artifacts" / address.rpartition("/")[2]).read_bytes()


def test_a_client_that_names_no_encoding_is_served(served: Served) -> None:
    """curl does so."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
        client.sendall(b"GET /static/bundle.js HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert client.makefile("rb").readline().split()[1] == b"200"


def test_a_visitor_who_disconnects_leaves_no_message(served: Served) -> None:
    before = served.begun.text
    for request in (b"", b"GET /", b"GET /static/bundle.js HTTP/1.0\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as visitor:
            visitor.sendall(request)
            # Closed with a reset, as a browser's killed tab does.
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in range(3):
        assert ask(served.port, "/api/studies")[0] == 200
    assert served.begun.text == before


@pytest.mark.parametrize("number", ["taken", "70000"])
def test_a_port_that_is_not_free_is_one_error_line(tiny: Tiny, number: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1]) if number == "taken" else number
        ended = run_here(*words(tiny, "--port", port))
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert f"--port {port} (" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_it_ends_cleanly_while_somebody_is_connected(tiny: Tiny, sent: signal.Signals) -> None:
    with serving(tiny) as running, socket.create_connection(("127.0.0.1", running.port)) as visitor:
        visitor.sendall(b"GET /")
        running.begun.process.send_signal(sent)
        assert running.begun.end() == 0
        assert running.begun.text.splitlines() == [
            f"Study 'tiny' in {tiny.study_folder}",
            f"{running.address}  (press Ctrl-C to stop it)",
        ]


# -- as a person sees it

MARKS = """
return document.getElementById('plot-history')?.data.filter(t => t.mode === 'markers')
  .reduce((sum, trace) => sum + trace.x.length, 0)
"""
TITLES = """
return [...document.querySelectorAll('[id^="user-defined-plot:"]')].filter(p => p.querySelector('.main-svg'))
  .map(p => p.layout.title.text).sort()
"""
PICTURES = """
return [...document.images].filter(i => i.src.includes('/artifacts/')).map(i => i.complete && i.naturalWidth > 100)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a Chromium that reaches nothing but this machine."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1400,1400"):
        options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # it refuses to start as root with one
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def shows(browser: Any, script: str, right: Callable[[Any], object]) -> Any:
    """Wait until a script's result is right, and return it."""
    until(lambda: right(browser.execute_script(script)), script)
    return browser.execute_script(script)


def text(browser: Any, part: str) -> str:
    """Return all visible text, once `part` is visible."""
    return shows(browser, "return document.body.innerText", lambda words: part in words)


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def quiet(browser: Any) -> Iterator[Any]:
    """Return a browser whose console shows no severe message, up to the end of the test."""
    complaints(browser)
    yield browser
    assert complaints(browser) == []


@seen
def test_the_first_page_has_a_point_per_finished_trial_and_the_custom_plots(served: Served, quiet: Any) -> None:
    trials = [trial for trial in served.study("tiny").get_trials() if trial.intermediate_values]
    quiet.get(served.address)
    assert shows(quiet, MARKS, lambda count: count) == len(trials)
    expected = ["Accuracy against FLOPs"]
    assert shows(quiet, TITLES, lambda titles: len(titles) >= len(expected)) == expected


@seen
def test_the_best_trial_is_marked_with_its_value_its_note_and_its_pictures(served: Served, quiet: Any) -> None:
    best = served.study("tiny").best_trial
    quiet.get(f"{served.address}/trials?numbers={best.number}")
    shown = text(quiet, "Most confident mistakes")
    assert f"Trial {best.number} (trial_id={best._trial_id})\nComplete\nBest Trial" in shown
    assert f"{best.value}" in shown
    assert f"{100 * best.value:.2f} % top-1" in shown.replace("\u00a0", " ")
    # Three in the note, and the same three as thumbnails below.
    assert shows(quiet, PICTURES, lambda loaded: len(loaded) == 6 and all(loaded))


@seen
def test_the_study_explains_itself(served: Served, quiet: Any) -> None:
    quiet.get(f"{served.address}/note")
    shown = text(quiet, "What to do next")
    assert "42 pictures of 3 classes" in shown
    assert f"in trial {served.study('tiny').best_trial.number}." in shown
    assert "python study.py retrain --study tiny" in shown


@seen
@pytest.mark.long
def test_a_trial_that_ends_while_the_page_is_open_appears(served: Served, quiet: Any) -> None:
    study = served.study("tiny")
    quiet.get(served.address)
    before = shows(quiet, MARKS, lambda count: count)
    quiet.execute_script("window.stays = true")
    study.add_trial(recorded([0.1, 0.2]))
    assert shows(quiet, MARKS, lambda count: count > before) == before + 1
    assert quiet.execute_script("return window.stays"), "the page was not reloaded"


@seen
@pytest.mark.parametrize("name", ["begun", "pruned"])
def test_a_study_without_a_complete_trial_opens(served: Served, quiet: Any, name: str) -> None:
    quiet.get(served.page(name))
    points = 3 if name == "pruned" else 0
    assert shows(quiet, MARKS, lambda count: count == points) == points
    quiet.get(f"{served.page(name)}/trials")
    text(quiet, "3 Trials" if name == "pruned" else "1 Trials")


@seen
@pytest.mark.long
def test_a_study_of_a_thousand_trials_opens(served: Served, quiet: Any) -> None:
    trials = made_up_trials(40) * 25
    storage = careless_storage(f"sqlite:///{served.tiny.study_folder / 'study.db'}")
    study = made_up_study(trials, name="thousand", storage=storage)
    described(served.tiny, study, served.tiny.study_folder)
    shown = sum(bool(trial.intermediate_values) for trial in trials)
    assert shown == 27 * 25
    quiet.get(served.page("thousand"))
    assert shows(quiet, MARKS, lambda count: count == shown) == shown
    expected = ["Accuracy against FLOPs", "Importances"]
    assert shows(quiet, TITLES, lambda titles: len(titles) == 2) == expected
    quiet.get(f"{served.page('thousand')}/trials?numbers={study.best_trial.number}")
    assert f"{study.best_value}" in text(quiet, "Best Trial")


@seen
@pytest.mark.parametrize("place", ["", "/trials?numbers=4", "/note"])
def test_hostile_names_are_seen_and_run_nothing(served: Served, quiet: Any, place: str) -> None:
    from selenium.webdriver.support.expected_conditions import alert_is_present

    quiet.get(served.page(INSULT) + place)
    shown = text(quiet, " ".join(INSULT.split()))
    if place == "":
        assert shows(quiet, TITLES, lambda titles: len(titles) == 2) == ["Accuracy against FLOPs", "Finalists"]
    if place == "/note":
        assert all(name in shown for name in HOSTILE[:3])
    time.sleep(0.5)  # for a script to have run, there is no condition to wait on
    assert not alert_is_present()(quiet)
    assert (
        quiet.execute_script("return document.querySelectorAll('[onerror], img[src$=\"/x\"], img[src=x]').length") == 0
    )
