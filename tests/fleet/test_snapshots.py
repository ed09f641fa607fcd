"""Snapshots of a DAG folder, and what of a change is in force."""

import os
import sys
import time

import pytest

from fleet.dag_check import dags_of
from fleet.settling import settle, without_stubs
from fleet.snapshots import Snapshots, read_tree, state_of

OLD = {"a.py": b"a", "b.py": b"b", "lib.py": b"lib"}
IN_FORCE = {"a.py": {"a"}, "b.py": {"b", "c"}}
DEFINES = {
    b"a": {"a": ["1", "2"]},
    b"b": {"b": [], "c": []},
    b"lib": {},
    b"new a": {"a": ["1"]},
    b"only b": {"b": []},
}


def check(tree, files):
    """A file is broken if it says so, or if it is `a` and lib.py does."""
    answers = {}
    for name in files:
        is_broken = b"broken" in (tree[name], tree.get("lib.py") if b"a" in tree[name] else None)
        answers[name] = "SyntaxError: line 3" if is_broken else DEFINES[tree[name]]
    return answers


def settled(new, **needs: str):
    """`needs`: DAG with a run that goes on → the ids of its tasks that have not ended."""

    def needed(dags):
        return {dag: set(tasks) for dag, tasks in needs.items() if dag in dags}

    return settle(new, OLD, IN_FORCE, check, needed)


def test_a_change_that_harms_nobody_is_in_force():
    new = {**OLD, "a.py": b"new a", "broken_from_the_start.py": b"broken"}
    assert settled(new, a="1", b="", c="").tree == new


def test_a_broken_file_keeps_its_version_and_others_change():
    found = settled({**OLD, "a.py": b"new a", "b.py": b"broken"})
    assert found.tree == {**OLD, "a.py": b"new a"}
    assert list(found.reasons) == ["b.py"]
    shown = found.files()["held_back/b.py"].decode()
    with pytest.raises(ImportError, match=r"b.py has changed, but .* SyntaxError: line 3"):
        exec(shown)
    assert without_stubs(found.files()) == found.tree


def test_a_broken_module_that_a_dag_imports_changes_nothing():
    found = settled({**OLD, "lib.py": b"broken", "b.py": b"only b"})
    assert found.tree == OLD
    assert list(found.reasons) == ["a.py"]


@pytest.mark.parametrize(
    ("new", "needs", "reason"),
    [
        ({**OLD, "b.py": b"only b"}, {"c": ""}, "it has no DAG c, and"),
        ({"a.py": b"a", "lib.py": b"lib"}, {"c": ""}, "it is deleted, and DAG c"),
        ({**OLD, "a.py": b"new a"}, {"a": "2"}, "it has no task 2 of DAG a, and"),
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
    new = {"a.py": b"a", "lib.py": b"lib", "moved.py": b"b"}
    assert settled(new, b="", c="").tree == new


def test_a_first_snapshot_has_everything():
    new = {"a.py": b"broken"}
    assert settle(new, {}, {}, check, set).tree == new


def test_a_snapshot_stays_as_it_was_opened(tmp_path):
    source, snapshots = tmp_path / "source", Snapshots(tmp_path / "kept")
    assert snapshots.current is None
    (source / "sub").mkdir(parents=True)
    for name in ("a.py", "sub/b.sql", ".airflowignore", ".swap", "sub/.git"):
        (source / name).write_text(name)
    first = snapshots.publish(read_tree(source)[0])
    assert sorted(snapshots.tree()) == [".airflowignore", "a.py", "sub/b.sql"]
    second = snapshots.publish({"a.py": b"2"})
    assert snapshots.current == second
    assert (first / "a.py").read_text() == "a.py"
    assert oct(first.stat().st_mode)[-3:] == "755"
    assert not list((tmp_path / "kept").glob(".new-*"))


def test_old_snapshots_go_but_never_the_current_one(tmp_path):
    snapshots = Snapshots(tmp_path)
    folders = [snapshots.publish({"a.py": b"%d" % number}) for number in range(3)]
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
    tree, faults = read_tree(tmp_path)
    assert list(tree) == ["a.py"]
    assert faults == {"loop.py": "cannot be read: Too many levels of symbolic links"}


GOOD = """\
from airflow.sdk import DAG, task
import helper
with DAG("good", schedule=None):
    @task(queue=helper.QUEUE)
    def work(): ...
    work()
"""


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
    assert found["dies.py"] == "its import ends with SIGKILL"
    assert "helper" not in sys.modules
