"""Decide which version of each DAG file is in force, so that a changed folder harms no run."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from fleet.snapshots import Tree

HELD_BACK = "held_back"
"""Folder of a snapshot. It has a file for each file that is held back, and that file raises the
reason when it is imported. So Airflow shows the reason among the import errors."""
Answer = dict[str, list[str]] | str
"""The ids of a file's DAGs, each with those of its tasks; or the file's import error."""
_REMEDY = "let the run end, mark it failed, or pause the DAG"


@dataclass
class Settled:
    """The files to put in force, and the changes that are held back."""

    tree: Tree
    reasons: dict[str, str] = field(default_factory=dict)
    """File whose change is held back → the reason, one or more lines."""

    def files(self) -> Tree:
        """The tree, plus a file that raises each reason."""
        shown = {f"{HELD_BACK}/{name}": _stub(name, why) for name, why in self.reasons.items()}
        return self.tree | shown


def _stub(name: str, why: str) -> bytes:
    text = f"{name} has changed, but its version before the change stays in force: {why}"
    return f"# airflow dag\nraise ImportError({text!r})\n".encode()


def without_stubs(tree: Tree) -> Tree:
    """A snapshot's files without those that `Settled.files` added."""
    return {name: text for name, text in tree.items() if not name.startswith(f"{HELD_BACK}/")}


def settle(
    new: Tree,
    old: Tree,
    in_force: Mapping[str, set[str]],
    check: Callable[[Tree, list[str]], Mapping[str, Answer]],
    needs: Callable[[set[str]], Mapping[str, set[str]]],
) -> Settled:
    """Decide which changes of a folder to put in force.

    If a file has DAGs in force, its change is held back while the new version cannot be imported,
    or lacks a DAG or a task that a run still needs. Other files may be broken.

    Args:
        new: the folder's files.
        old: the files in force.
        in_force: file → ids of its DAGs that are in force.
        check: imports files of a tree.
        needs: takes DAGs; returns those with unfinished runs → their unfinished tasks.
    """
    if not old:
        return Settled(new)
    answers = check(new, _to_check(new, old, in_force))
    kept = in_force.keys() & old.keys()
    reasons = {
        name: text for name, text in answers.items() if isinstance(text, str) and name in kept
    }
    for name, lost in _lost(kept, new, in_force, answers, needs).items():
        which = "it is deleted" if name not in new else f"it has no {lost}"
        reasons[name] = f"{which}, and {lost} is needed by a run; {_REMEDY}"
    tree = {**new, **{name: old[name] for name in reasons}}
    again = check(tree, sorted(reasons.keys() & tree.keys()))
    if any(isinstance(text, str) for text in again.values()):
        tree = dict(old)  # the old version works only with the old versions of other files
    return Settled(tree, reasons)


def _to_check(new: Tree, old: Tree, in_force: Mapping[str, set[str]]) -> list[str]:
    """The files whose import can have a different result now."""
    names = {name for name in new.keys() | old.keys() if name.endswith(".py")}
    changed = {name for name in names if new.get(name) != old.get(name)}
    if not changed <= in_force.keys():
        changed |= in_force.keys()  # they may import one of the others
    return sorted(changed & new.keys())


def _lost(
    kept: AbstractSet[str],
    new: Tree,
    in_force: Mapping[str, set[str]],
    answers: Mapping[str, Answer],
    needs: Callable[[set[str]], Mapping[str, set[str]]],
) -> dict[str, str]:
    """File → the first DAG or task of it that a run needs and that no file defines now."""
    imported = [found for found in answers.values() if not isinstance(found, str)]
    now = {dag: set(tasks) for found in imported for dag, tasks in found.items()}
    seen = {name for name in kept if name not in new or isinstance(answers.get(name), dict)}
    needed = needs({dag for name in seen for dag in in_force[name]})
    lost = {}
    for name in sorted(seen):
        for dag in sorted(in_force[name] & needed.keys()):
            if dag not in now:
                lost[name] = f"DAG {dag}"
            elif tasks := sorted(needed[dag] - now[dag]):
                lost[name] = f"task {tasks[0]} of DAG {dag}"
    return lost
