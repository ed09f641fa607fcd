"""Decide which version of each DAG file is in force, so that a changed folder harms no run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fleet.snapshots import File, Tree

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
    """File that is held back → the reason, one or more lines."""

    def files(self) -> Tree:
        """The tree, plus a file that raises each reason."""
        shown = {f"{HELD_BACK}/{name}": _stub(name, why) for name, why in self.reasons.items()}
        return self.tree | shown


def _stub(name: str, why: str) -> File:
    text = f"{name} is not in force as it is in the folder; an earlier version of it is: {why}"
    return File(f"# airflow dag\nraise ImportError({text!r})\n".encode())


def without_stubs(tree: Tree) -> Tree:
    """A snapshot's files without those that `Settled.files` added."""
    return {name: file for name, file in tree.items() if not name.startswith(f"{HELD_BACK}/")}


@dataclass
class Rules:
    """What the decision depends on."""

    in_force: Mapping[str, set[str]]
    """File → ids of its DAGs that are in force."""
    check: Callable[[Tree, list[str]], Mapping[str, Answer]]
    """Imports files of a tree."""
    needs: Callable[[set[str]], Mapping[str, set[str]]]
    """Takes DAGs; returns those with unfinished runs → their unfinished tasks."""


def settle(new: Tree, old: Tree, rules: Rules) -> Settled:
    """Decide which changes of a folder to put in force.

    If a file has DAGs in force, its change is held back while the new version cannot be imported,
    or lacks a DAG or a task that a run still needs. Other files may be broken.

    Args:
        new: the folder's files.
        old: the files in force.
        rules: how to find out.
    """
    if not old:
        return Settled(new)
    changed = {name for name in new.keys() | old.keys() if new.get(name) != old.get(name)}
    answers = dict(rules.check(new, _to_check(changed, new, rules.in_force)))
    reasons = _reasons(new, old, answers, rules)
    if not reasons:
        return Settled(new)
    tree = {**new, **{name: old[name] for name in reasons}}
    answers |= rules.check(tree, sorted(reasons))
    if not _reasons(tree, old, answers, rules):
        return Settled(tree, reasons)
    # The old version of a file works only with the old versions of others.
    waiting = f"it waits for {', '.join(sorted(reasons))}"
    return Settled(dict(old), dict.fromkeys(sorted(changed), waiting) | reasons)


def _to_check(changed: set[str], new: Tree, in_force: Mapping[str, set[str]]) -> list[str]:
    """The files whose import can have a different result now."""
    names = {name for name in changed if name.endswith((".py", ".zip"))}
    if not changed <= in_force.keys():
        names |= in_force.keys()  # they may read or import one of the others
    return sorted(names & new.keys())


def _reasons(tree: Tree, old: Tree, answers: Mapping[str, Answer], rules: Rules) -> dict[str, str]:
    """File with DAGs in force → why its version in the tree would harm a run."""
    kept = rules.in_force.keys() & old.keys()
    broken = {
        name: text for name, text in answers.items() if isinstance(text, str) and name in kept
    }
    as_before = [name for name in broken if tree.get(name) == old[name]]
    for name, text in rules.check(old, sorted(as_before)).items():
        if isinstance(text, str):  # its fault is not the change's
            del broken[name]
    seen = {name for name in kept if name not in tree or isinstance(answers.get(name), dict)}
    return _lost(seen, tree, answers, rules) | broken


def _lost(
    names: set[str], tree: Tree, answers: Mapping[str, Answer], rules: Rules
) -> dict[str, str]:
    """File → the first DAG or task of it that a run needs and that no file defines now."""
    imported = [found for found in answers.values() if not isinstance(found, str)]
    now = {dag: set(tasks) for found in imported for dag, tasks in found.items()}
    needed = rules.needs({dag for name in names for dag in rules.in_force[name]})
    lost = {}
    for name in sorted(names):
        for dag in sorted(rules.in_force[name] & needed.keys()):
            missing = sorted(needed[dag] - now.get(dag, set()))
            if dag not in now or missing:
                what = f"DAG {dag}" if dag not in now else f"task {missing[0]} of DAG {dag}"
                which = f"it has no {what}" if name in tree else "it is deleted"
                lost[name] = f"{which}, and {what} is needed by a run; {_REMEDY}"
                break
    return lost
