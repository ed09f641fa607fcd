"""Snapshots of a DAG folder, and which files of a change come into force."""

import os
import sys
import time

import pytest

from fleet.bundles import imports
from fleet.bundles.changes import Rules, settle, without_stubs
from fleet.bundles.imports import Imports, UnfinishedError, dags_of, discovered
from fleet.bundles.snapshots import MAX_BYTES, File, Snapshots, read_tree, state_of


def tree(**files: str) -> dict[str, File]:
    return {f"{name}.py": File(text.encode()) for name, text in files.items()}


OLD = tree(a="a", b="b", lib="lib")
IN_FORCE = {"a.py": {"a"}, "b.py": {"b", "c"}}
DEFINES = {
    "a": {"a": ["1", "2"]},
    "b": {"b": [], "c": []},
    "lib": {},
    "short": {},
    "new a": {"a": ["1"]},
    "only b": {"b": []},
}


def check(tree, files):
    """Look up each file's DAGs and tasks in `DEFINES`; a file with the text "broken" fails.

    A file with the text "a" imports lib.py: it fails if lib.py is "broken", and has one task if
    lib.py is "short".
    """
    answers = {}
    lib = tree["lib.py"].content if "lib.py" in tree else b""
    for name in files:
        text = tree[name].content.decode()
        if "broken" in (text, lib.decode() if text == "a" else ""):
            answers[name] = "SyntaxError: line 3"
        else:
            answers[name] = {"a": ["1"]} if (text, lib) == ("a", b"short") else DEFINES[text]
    return answers


def settled(new, old=OLD, **needs: str):
    """Settle a change. `needs`: DAG with an unfinished run → the ids of its unfinished tasks."""

    def needed(dags):
        return {dag: set(tasks) for dag, tasks in needs.items() if dag in dags}

    return settle(new, old, Rules(IN_FORCE, check, needed))


def test_a_change_that_harms_nobody_is_in_force():
    new = OLD | tree(a="new a", from_the_start="broken")
    assert settled(new, a="1", b="", c="").tree == new


def test_a_broken_file_keeps_its_version_and_others_change():
    found = settled(OLD | tree(a="new a", b="broken"))
    assert found.tree == OLD | tree(a="new a")
    assert list(found.reasons) == ["b.py"]
    shown = found.files()["held_back/b.py"].content.decode()
    with pytest.raises(ImportError, match=r"change of b.py is held back.*: SyntaxError: line 3"):
        exec(shown)
    assert without_stubs(found.files()) == found.tree


def test_a_broken_module_that_a_dag_imports_changes_nothing_and_every_file_says_so():
    found = settled(OLD | tree(lib="broken", b="only b"))
    assert found.tree == OLD
    assert found.reasons["a.py"] == "SyntaxError: line 3"
    assert found.reasons["b.py"] == found.reasons["lib.py"]
    assert found.reasons["b.py"].endswith("only together with the changes of a.py")


def test_a_module_that_takes_a_task_from_a_dag_changes_nothing():
    new = OLD | tree(lib="short")
    found = settled(new, a="2")
    assert found.tree == OLD
    assert "the file no longer has task 2 of DAG a" in found.reasons["a.py"]
    assert settled(new, a="1").tree == new


def test_a_file_that_was_broken_before_a_change_holds_nothing_back():
    old = OLD | tree(lib="broken")
    new = old | tree(b="only b", another="b")
    assert settled(new, old).tree == new


def test_a_changed_file_that_is_no_program_is_checked_through_its_dags():
    found = settled(OLD | {"config.yaml": File(b"half")} | tree(lib="broken"))
    assert found.tree == OLD


@pytest.mark.parametrize(
    ("new", "needs", "reason"),
    [
        (OLD | tree(b="only b"), {"c": ""}, "the file no longer has DAG c, but"),
        (tree(a="a", lib="lib"), {"c": ""}, "the file is deleted, but a run still needs DAG c"),
        (OLD | tree(a="new a"), {"a": "2"}, "the file no longer has task 2 of DAG a, but"),
    ],
    ids=["a DAG less", "deleted", "a task less"],
)
def test_what_a_run_needs_stays_until_it_has_ended(new, needs, reason):
    found = settled(new, **needs)
    assert found.tree == OLD
    (why,) = found.reasons.values()
    assert why.startswith(reason)
    assert settled(new, a="1").tree == new


def test_a_dag_with_runs_may_move_to_another_file():
    new = tree(a="a", lib="lib", moved="b")
    assert settled(new, b="", c="").tree == new


def test_a_dag_with_runs_that_are_bound_to_a_version_stays_in_its_file():
    """Airflow opens the run's version, but looks for the DAG in the file where the DAG is now."""
    new = tree(a="a", lib="lib", moved="b")
    rules = Rules(IN_FORCE, check, lambda dags: {dag: set() for dag in dags & {"c"}}, True)
    found = settle(new, OLD, rules)
    assert found.reasons["b.py"].startswith("the file is deleted, but a run still needs DAG c")
    assert found.tree["b.py"] == OLD["b.py"]


def test_a_first_snapshot_has_everything():
    new = tree(a="broken")
    assert settle(new, {}, Rules({}, check, dict)).tree == new


def test_a_snapshot_stays_as_it_was_opened(tmp_path):
    source, snapshots = tmp_path / "source", Snapshots(tmp_path / "kept")
    assert snapshots.current is None
    (source / "sub").mkdir(parents=True)
    for name in ("a.py", "sub/b.sql", ".airflowignore", ".swap", "sub/.git"):
        (source / name).write_text(name)
    first = snapshots.publish(read_tree(source)[0])
    assert sorted(snapshots.tree()) == [".airflowignore", "a.py", "sub/b.sql"]
    second = snapshots.publish({"a.py": File(b"2"), "sub/b.sql": File(b"sub/b.sql")})
    assert snapshots.current == second
    assert (first / "a.py").read_text() == "a.py"
    times = [(each / "sub/b.sql").stat().st_mtime_ns for each in (first, second)]
    assert times[0] == times[1], "Airflow would parse a file again that has not changed"
    assert oct(first.stat().st_mode)[-3:] == "755"
    assert not list((tmp_path / "kept").glob(".new-*"))


def test_old_snapshots_go_but_never_the_current_one(tmp_path):
    snapshots = Snapshots(tmp_path)
    folders = [snapshots.publish(tree(a=str(number))) for number in range(3)]
    long_ago = time.time() - 100
    os.utime(folders[1], (long_ago, long_ago))
    snapshots.prune(50)
    assert sorted(tmp_path.glob("2*")) == folders[1:]
    snapshots.prune(-1)
    assert sorted(tmp_path.glob("2*")) == folders[2:]


def test_a_change_is_seen_whatever_its_time_stamp(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("1")
    its = file.stat()
    before = state_of(tmp_path)
    (tmp_path / "new").write_text("2")
    os.utime(tmp_path / "new", ns=(its.st_atime_ns, its.st_mtime_ns))
    (tmp_path / "new").replace(file)
    assert state_of(tmp_path) != before


def test_a_file_that_cannot_be_read_is_named_and_others_are_read(tmp_path):
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "above").symlink_to(".", target_is_directory=True)
    os.mkfifo(tmp_path / "pipe")
    found, faults = read_tree(tmp_path)
    assert list(found) == ["a.py"]
    assert faults == {"loop.py": "cannot be read: Too many levels of symbolic links"}


GOOD = """\
from airflow.sdk import DAG, task
import helper
with DAG("good", schedule=None):
    @task(queue=helper.QUEUE)
    def work(): ...
    work()
"""


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Airflow, of pathspec
def test_dags_are_told_from_errors_by_airflow_itself(tmp_path):
    files = {
        "good.py": GOOD,
        "helper.py": 'QUEUE = "cpu"\n',
        "half.py": GOOD[:60],
        "dies.py": GOOD + "import os\nos.kill(os.getpid(), 9)\n",
        "cannot.py": GOOD.replace("    work()", "    work()[0]"),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = {name: dags_of(tmp_path, "dags-folder", name) for name in files}
    assert (found["good.py"], found["helper.py"]) == ({"good": ["work"]}, {})
    assert "SyntaxError" in found["half.py"]
    assert "XComArg only supports str lookup" in found["cannot.py"]
    assert found["dies.py"] == "importing the file ended with SIGKILL"
    assert "helper" not in sys.modules
    (tmp_path / ".airflowignore").write_text("dies.py\n")
    assert discovered(tmp_path) == {"good.py", "half.py", "cannot.py"}


def test_a_folder_that_is_no_dag_folder_is_refused(tmp_path):
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(OSError, match="holds more than 64 MiB; move what is no DAG file"):
        read_tree(tmp_path)


def test_a_round_that_is_too_short_decides_nothing_and_the_next_one_goes_on(tmp_path, monkeypatch):
    """While a file has not been imported, the check reports no error for the file, new or old."""
    monkeypatch.setattr(imports, "ROUND_SECONDS", 0.0)
    found = Imports("dags-folder", tmp_path)
    names = {f"{name}.py": File(GOOD.replace("good", name).encode()) for name in "abc"}
    files = names | {"helper.py": File(b'QUEUE = "cpu"\n')}
    for _ in range(2):
        with pytest.raises(UnfinishedError), found.round() as check:
            check(files, list(names))
    with found.round() as check:
        answers = check(files, list(names))
    assert answers == {f"{name}.py": {name: ["work"]} for name in "abc"}
