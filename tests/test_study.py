"""The command line: its options, its help, and one line that names the fix for everything a user can get wrong."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from pictures import class_folders

import study
from commands.options import argv
from tuning.lock import sole_coordinator
from tuning.settings import Settings, command_line

ROOT = Path(__file__).parents[1]

STRUCK = """
import signal, sys, time
from commands.interrupt import interruptible

class Strikes:
    def find_spec(self, name, *rest):
        if name == NAME:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Strikes())
with interruptible():
    try:
        import torch, torchvision
        time.sleep(600)
    except KeyboardInterrupt:
        print(hasattr(torch, "compile"), "torchvision" in sys.modules)
"""
"""Program to which Ctrl-C comes while it imports the module NAME."""

OPTIONS = {
    (): {
        *(
            "--data",
            "--test-data",
            "--parts",
            "--follow-links",
            "--near-duplicates",
            "--pictures",
            "--study",
            "--profile",
        ),
        *("--trials", "--epochs", "--timeout", "--patience", "--target"),
        *("--max-params", "--max-flops", "--sampler", "--scheduler", "--audit-pruner", "--no-flips", "--seed"),
        *("--ray", "--workers", "--device", "--precision", "--storage", "--results", "--cache"),
    },
    ("retrain",): {
        *(
            "--study",
            "--data",
            "--test-data",
            "--parts",
            "--trial",
            "--finalists",
            "--seeds",
            "--longer",
            "--baseline",
            "--pretrained",
            "--weights",
            "--retest",
        ),
        *("--ray", "--workers", "--device", "--precision", "--storage", "--results", "--cache"),
    },
    ("export",): {"--study", "--data", "--test-data", "--parts", "--storage", "--results", "--cache"},
    ("predict",): {
        *("PICTURES", "--model", "--study", "--top", "--json", "--csv", "--explain"),
        *("--device", "--results"),
    },
    ("report",): {"--study", "--storage", "--results"},
    ("dashboard",): {"--study", "--port", "--storage", "--results"},
    ("check-data",): {
        *("--data", "--test-data", "--parts", "--follow-links", "--near-duplicates"),
        *("--report", "--sheet", "--json", "--cache"),
    },
    ("clean",): {"NAMES", "--results", "--cache"},
}
"""Every command and its options. Whoever adds one adds it here and to the README."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`python study.py ...` in this process."""

    def run(*words: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "80")
        code = 0
        try:
            study.main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    return run


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., str]:
    """A function that runs what must be refused (exit code 2, one line, no file of a study changed): the line."""

    def refused(*words: str | Path, places: bool = True) -> str:
        before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
        here = ("--results", tmp_path / "results", "--cache", tmp_path / "cache") if places else ()
        ended = run(*words, *here)
        assert ended.code == 2, ended
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        after = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
        assert {path: after.get(path) for path in before} == before
        return ended.err.removeprefix("error: ").rstrip("\n")

    return refused


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "pictures", classes=2, each=12)


# -- commands, options and help


def commands() -> set[tuple[str, ...]]:
    return {(), *((name,) for name in study.app if not name.startswith("-"))}


@pytest.mark.parametrize("name", ["torch._tensor", "torch.nn", "torchvision.ops"])
def test_ctrl_c_waits_until_torch_is_imported(name: str) -> None:
    """In the midst of it, torch's C++ code aborts the process: two of a hundred times."""
    program = STRUCK.replace("NAME", repr(name))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    whole, other = done.stdout.split()
    assert (done.returncode, done.stderr, whole) == (0, "", "True")
    assert other == "True" or not name.startswith("torchvision")


def options(command: tuple[str, ...]) -> set[str]:
    app = study.app[command[0]] if command else study.app
    return {argument.name for argument in app.assemble_argument_collection() if argument.parse}


def test_commands_and_options_are_frozen() -> None:
    assert commands() == set(OPTIONS)
    for command in OPTIONS:
        assert options(command) == OPTIONS[command]


@pytest.mark.parametrize("command", OPTIONS)
def test_help_fits_a_terminal_and_explains_every_option(command: tuple[str, ...], run: Run) -> None:
    ended = run(*command, "--help")
    assert (ended.code, ended.err) == (0, "")
    shown = [line.rstrip() for line in ended.out.splitlines()]
    assert all(len(line) <= 80 for line in shown)
    assert shown[0].startswith(" ".join(["Usage: python study.py", *command]))
    for option in OPTIONS[command]:
        lines = [line for line in shown if line.split()[:1] == [option]]
        assert len(lines) == 1, option
        assert len(lines[0].split()) > 3, f"{option} is not explained"


def test_help_names_the_commands_and_every_choice(run: Run) -> None:
    text = " ".join(run("--help").out.split())
    quoted = [f'"{name}"' for name in ("quick", "laptop", "gpu", "auto", "tpe", "random", "median", "asha", "none")]
    for name in ("retrain", "export", "predict", "check-data", "clean", *quoted):
        assert name in text
    assert "[default: 40]" in text


# -- mistyped commands


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--trials 0", "--trials must be >= 1, but got 0; see python study.py --help"),
        ("--trials -5", "--trials must be >= 1, but got -5; see python study.py --help"),
        ("--trials many", "--trials must be an integer, but got 'many'; see python study.py --help"),
        ("--trials 1.5", "--trials must be an integer, but got '1.5'; see python study.py --help"),
        ("--trials", "--trials needs a value; see python study.py --help"),
        ("--epochs 0", "--epochs must be >= 1, but got 0; see python study.py --help"),
        ("--timeout -3", "--timeout must be > 0, but got -3.0; see python study.py --help"),
        ("--timeout nan", "--timeout must be > 0, but got nan; see python study.py --help"),
        ("--timeout soon", "--timeout must be a number of minutes, but got 'soon'; see python study.py --help"),
        ("--seed -1", "--seed must be >= 0, but got -1; see python study.py --help"),
        ("--seed 4294967296", "--seed must be < 4294967296, but got 4294967296; see python study.py --help"),
        (
            "--scheduler medain",
            "--scheduler must be one of promote, median, asha, none, but got 'medain' (did you mean median?); "
            "see python study.py --help",
        ),
        ("--device tpu", "--device must be one of auto, cpu, cuda, mps, but got 'tpu'; see python study.py --help"),
        (
            "--target 0.9",
            "--target must be a percentage of at least 1 (did you mean 90?), but got 0.9; see python study.py --help",
        ),
        (
            "--timeout 1.5h",
            "--timeout must be a number of minutes, but got '1.5h' (did you mean 90?); see python study.py --help",
        ),
        (
            "--max-flops 50M",
            "--max-flops must be a number, but got '50M' (did you mean 50000000?); see python study.py --help",
        ),
        ("--max-flops inf", "--max-flops must be < inf, but got inf; see python study.py --help"),
        ("--target 90%", "--target must be a number, but got '90%' (did you mean 90?); see python study.py --help"),
        ("--target 90,5", "--target must be a number, but got '90,5' (did you mean 90.5?); see python study.py --help"),
        (
            "--pictures 1,000",
            "--pictures must be an integer, but got '1,000' (did you mean 1000?); see python study.py --help",
        ),
        ("--trials 1e2", "--trials must be an integer, but got '1e2' (did you mean 100?); see python study.py --help"),
        ("--trails 5", "unknown option --trails (did you mean --trials?); see python study.py --help"),
        ("-x", "unknown option -x; see python study.py --help"),
        (
            "cleen",
            "unknown command 'cleen' (did you mean clean?): choose one of retrain, export, predict, report, dashboard, "
            "check-data, clean; see python study.py --help",
        ),
        ("check-data --trials 4", "unknown option --trials; see python study.py check-data --help"),
        (
            "export export",
            "unexpected argument 'export': export takes options only; see python study.py export --help",
        ),
        (
            "check-data folder",
            "unexpected argument 'folder': check-data takes options only; see python study.py check-data --help",
        ),
    ],
)
def test_a_mistyped_command_line_is_explained_in_one_line(words: str, line: str, refused: Callable[..., str]) -> None:
    assert refused(*words.split(), places=False) == line


def test_a_folder_without_its_option_is_recognised(refused: Callable[..., str], pictures: Path) -> None:
    for command in ([], ["check-data"]):
        assert f"'{pictures}' (did you mean --data {pictures}?)" in refused(*command, pictures, places=False)


def test_check_data_writes_the_report_also_of_data_that_it_refuses(run: Run, pictures: Path, tmp_path: Path) -> None:
    for file in (pictures / "Agaricus").iterdir():
        file.write_bytes(b"torn")
    report = tmp_path / "report.csv"
    ended = run("check-data", "--data", pictures, "--report", report, "--cache", tmp_path / "cache")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert report.read_text().count("unreadable") == 12
    rows = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if line}
    assert (rows["Agaricus"], rows["Amanita"]) == (["0", "12"], ["12", "0"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no head")
def test_check_data_writes_the_report_before_its_reader_leaves(pictures: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "study.py"), "check-data", "--data", str(pictures), "--cache", str(tmp_path)]
    command = f"{shlex.join([*words, '--report', str(tmp_path / 'report.csv')])} | head -n 1"
    subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=True)
    assert (tmp_path / "report.csv").read_text().count("kept") == 24


def test_check_data_says_how_the_folders_were_understood(run: Run, tmp_path: Path) -> None:
    for part, each in (("Training", 20), ("holdout", 4), ("extra", 1)):
        class_folders(tmp_path / "set" / part, classes=2, each=each)
    for number in range(20):
        below = tmp_path / "set" / "Training" / "Amanita" / f"site {number % 2}"
        below.mkdir(exist_ok=True)
        (below.parent / f"{number:04d}.jpg").rename(below / f"{number}.jpg")
    ended = run("check-data", "--data", tmp_path / "set", "--cache", tmp_path / "cache")
    assert ended.code == 0, ended.err
    text = " ".join(ended.out.split())
    assert "train from Training (32 pictures), test from holdout (8 pictures); validation taken from train" in text
    assert "Not used: extra, with 2 pictures" in text
    assert "'Amanita' has its pictures in subfolders: 'site 0' 8, 'site 1' 8." in text


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_unavailable_device_is_named_with_those_that_are_available(
    name: str, refused: Callable[..., str], pictures: Path
) -> None:
    if getattr(torch.backends, name).is_available() if name == "mps" else torch.cuda.is_available():
        pytest.skip(f"this machine has {name}")
    line = refused("--device", name, "--data", pictures)
    assert line.startswith(f"--device {name} ")
    assert torch.__version__ in line
    assert line.rpartition(": ")[2].startswith("use --device ")
    assert "cpu" in line.rpartition(": ")[2]


@pytest.mark.parametrize(
    ("option", "value", "facts"),
    [
        ("--target", "1", ("(did you mean 100?)", "most common class")),
        ("--target", "50", ("50.00 %", "most common class")),
        ("--max-flops", "50", ("(did you mean 5e+07?)", "FLOPs")),
        ("--max-params", "0.3", ("(did you mean 300000?)", "parameters")),
        ("--max-params", "300", ("(did you mean 300000?)", "parameters")),
    ],
)
def test_a_limit_that_says_nothing_or_allows_nothing_is_asked_back(
    option: str, value: str, facts: tuple[str, ...], refused: Callable[..., str], pictures: Path, tmp_path: Path
) -> None:
    """A study ended after one trial, or drew 20 networks that were over budget, because the unit was another one."""
    line = refused("--data", pictures, "--profile", "quick", option, value)
    assert line.startswith(f"{option} {value} ")
    assert [fact for fact in facts if fact not in line] == []
    assert not (tmp_path / "results").exists()


# -- pictures that cannot be used


def no_folder(folder: Path) -> list[str]:
    return [f"'{folder}'", "'field-guide'", "'kaggle'"]


def a_file(folder: Path) -> list[str]:
    folder.write_text("PK")
    return [f"{folder} is a file", "archive"]


def an_empty_folder(folder: Path) -> list[str]:
    folder.mkdir()
    return [str(folder), "at least 2 class"]


def one_class(folder: Path) -> list[str]:
    class_folders(folder, classes=1)
    return [str(folder), "'Agaricus'", "at least 2 class"]


def too_few(folder: Path) -> list[str]:
    class_folders(folder, classes=2, each=12)
    for path in sorted((folder / "Amanita").iterdir())[4:]:
        path.unlink()
    return [str(folder), "'Amanita'", "4", "10"]


def only_an_unreadable_one(folder: Path) -> list[str]:
    class_folders(folder, classes=2, each=12)
    (folder / "Zombie").mkdir()
    (folder / "Zombie" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return [str(folder), "'Zombie'", "0", "10", "1 unreadable"]


@pytest.mark.parametrize("spoil", [no_folder, a_file, an_empty_folder, one_class, too_few, only_an_unreadable_one])
@pytest.mark.parametrize("command", [(), ("check-data",)])
def test_pictures_that_cannot_be_used_are_an_error_with_path_and_reason(
    command: tuple[str, ...], spoil: Callable[[Path], list[str]], run: Run, refused: Callable[..., str], tmp_path: Path
) -> None:
    facts = spoil(tmp_path / "data")
    if command:
        ended = run(*command, "--data", tmp_path / "data", "--cache", tmp_path / "cache")
        assert ended.code == 2
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        line = ended.err
    else:
        line = refused("--data", tmp_path / "data")
        assert not (tmp_path / "results").exists()
    assert [fact for fact in facts if not re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", line)] == [], line


def test_an_ascii_log_shows_other_characters_as_escapes(pictures: Path, tmp_path: Path) -> None:
    """A study on a server without a locale ended in a UnicodeEncodeError at its first line."""
    (pictures / "Agaricus").rename(pictures / "Röhrling")
    words = [sys.executable, str(ROOT / "study.py"), "check-data", "--data", str(pictures), "--cache", str(tmp_path)]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(words, capture_output=True, timeout=60, env=ascii_only)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"\nR\\xf6hrling" in ended.stdout


# -- folders and databases that cannot be used


def test_results_under_a_file_are_refused(refused: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("mine")
    line = refused("--data", pictures, "--results", tmp_path / "a file", "--cache", tmp_path / "cache", places=False)
    assert line.startswith(f"cannot write to {tmp_path / 'a file' / 'pictures'} (")
    assert "--results" in line
    assert (tmp_path / "a file").read_text() == "mine"


def test_a_cache_under_a_file_is_refused(refused: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("mine")
    line = refused("--data", pictures, "--cache", tmp_path / "a file", "--results", tmp_path / "results", places=False)
    assert str(tmp_path / "a file") in line


def test_check_data_asks_whether_mirrored_pictures_keep_their_meaning(run: Run, pictures: Path, tmp_path: Path) -> None:
    words = ["check-data", "--data", pictures, "--cache", tmp_path / "cache"]
    assert "--no-flips" not in run(*words).out
    (pictures / "Agaricus").rename(pictures / "left")
    ended = run(*words)
    assert "--no-flips" in ended.out and "'left'" in ended.out


def test_a_report_that_cannot_be_written_is_refused(run: Run, pictures: Path, tmp_path: Path) -> None:
    report = tmp_path / "a file" / "report.csv"
    report.parent.write_text("mine")
    ended = run("check-data", "--data", pictures, "--cache", tmp_path / "cache", "--report", report)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert str(report.parent) in ended.err
    assert str(report) not in ended.out


def test_a_file_that_is_not_a_database_is_refused_and_left_alone(
    refused: Callable[..., str], pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "results" / "pictures").mkdir(parents=True)
    (tmp_path / "results" / "pictures" / "study.db").write_text("somebody's own file")
    line = refused("--data", pictures)
    for fact in ("pictures/study.db", "file is not a database", "--study", "--storage"):
        assert fact in line


def test_an_unusable_storage_is_refused_without_showing_its_password(
    refused: Callable[..., str], pictures: Path
) -> None:
    line = refused("--data", pictures, "--storage", "nosuchdatabase://me:s3cret@host/name")
    assert "nosuchdatabase://me:***@host/name" in line
    assert "s3cret" not in line


def test_the_command_to_resume_with_hides_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "--data", "my pictures", "--storage", "postgresql://me:s3cret@h/n"])
    assert command_line(argv()) == "python study.py --data 'my pictures' --storage 'postgresql://me:***@h/n'"


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_a_study_name_that_cannot_be_a_folder_is_refused(
    name: str, refused: Callable[..., str], pictures: Path
) -> None:
    line = refused("--data", pictures, "--study", name)
    assert repr(name) in line
    assert "--study" in line


def test_a_second_coordinator_is_refused(refused: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "pictures"
    folder.mkdir(parents=True)
    with sole_coordinator(folder):
        line = refused("--data", pictures)
    assert line.startswith(f"{folder} is in use by process {os.getpid()} on ")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are made in a namespace of Linux")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("ro", r"Read-only file system.*--results"),
        ("size=64k", "(database or disk is full|No space left on device)"),
    ],
)
def test_a_read_only_or_full_disk_is_an_error_of_one_line(
    options: str, reason: str, pictures: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mount namespace")
    command = [sys.executable, str(ROOT / "study.py"), "--data", str(pictures), "--results", str(disk)]
    command += ["--cache", str(tmp_path / "cache"), "--profile", "quick", "--workers", "2", "--epochs", "1"]
    mount = ["sh", "-c", 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"', "sh", options, str(disk)]
    ended = subprocess.run(["unshare", "-rm", *mount, *command], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert str(disk) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert re.search(reason, ended.stderr)


# -- clean


def test_clean_lists_everything_and_removes_what_is_named(
    run: Run, refused: Callable[..., str], tmp_path: Path
) -> None:
    for name in ("mushrooms", "birds"):
        (tmp_path / "results" / name / "trials").mkdir(parents=True)
        (tmp_path / "results" / name / "study.lock").touch()
    places = ("--results", tmp_path / "results", "--cache", tmp_path / "cache")
    listed = run("clean", *places)
    assert listed.code == 0
    assert "mushrooms" in listed.out
    assert "birds" in listed.out
    line = refused("clean", "mushroom")
    assert "'mushroom'" in line
    assert "birds, mushrooms" in line
    assert run("clean", "mushrooms", *places).out == "removed mushrooms (0.0 MB)\n"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["birds"]
    kept = Settings(data="field-guide", test_data=None, pictures=None, storage="postgresql://me@host/name")
    kept.save(tmp_path / "results" / "birds")
    assert "still in postgresql://me@host/name" in run("clean", "birds", *places).out


def test_clean_says_that_there_is_nothing_to_remove(run: Run, tmp_path: Path) -> None:
    ended = run("clean", "--results", tmp_path / "none", "--cache", tmp_path / "none either")
    assert ended == (0, "No studies or caches.\n", "")
