"""Decide which version of each DAG file is in force, so that a changed folder breaks no run.

The version in force is the version in the current snapshot. While a change of a file is held back,
the file's old version stays in force.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fleet.bundles.snapshots import File, Tree

HELD_BACK = "held_back"
"""Folder in a snapshot with one stub for each file whose change is held back. Importing a stub
raises an error with the reason, so Airflow shows the reason among the import errors."""
Answer = dict[str, list[str]] | str
"""Result of importing a file: DAG id → task ids of the DAG; or the text of the import error."""
_REMEDY = "let the run end, mark the run as failed, or pause the DAG"


@dataclass
class Settled:
    """The files to put in force, and the changes that are held back."""

    tree: Tree
    reasons: dict[str, str] = field(default_factory=dict)
    """File whose change is held back → the reason, one or more lines."""

    def files(self) -> Tree:
        """Return the tree, plus one stub for each reason."""
        shown = {f"{HELD_BACK}/{name}": _stub(name, why) for name, why in self.reasons.items()}
        return self.tree | shown


def _stub(name: str, why: str) -> File:
    text = (
        f"the change of {name} is held back, and the state before the change stays in force: {why}"
    )
    return File(f"# airflow dag\nraise ImportError({text!r})\n".encode())


def without_stubs(tree: Tree) -> Tree:
    """Return a snapshot's files without the stubs that `Settled.files` added."""
    return {name: file for name, file in tree.items() if not name.startswith(f"{HELD_BACK}/")}


@dataclass
class Rules:
    """The facts on which the decision depends, or functions that find them."""

    in_force: Mapping[str, set[str]]
    """File → ids of its DAGs that are in force."""
    check: Callable[[Tree, list[str]], Mapping[str, Answer]]
    """Imports the given files of a tree; returns file → answer."""
    needs: Callable[[set[str]], Mapping[str, set[str]]]
    """Takes DAG ids; returns id of a DAG with unfinished runs → ids of its unfinished tasks."""
    are_bound: bool = False
    """Whether a run keeps the version of the files with which it began. Airflow then looks for the
    run's DAG in that version, but at the DAG's present path, so the DAG must stay in its file."""


def settle(new: Tree, old: Tree, rules: Rules) -> Settled:
    """Decide which changes of a folder to put in force.

    If a file has DAGs in force, its change is held back in two cases: while the new version cannot
    be imported, and while it lacks a DAG or a task that a run still needs. If a file has no DAGs in
    force, its change is put in force even if the file is broken.

    Args:
        new: the folder's files.
        old: the files in force.
        rules: the facts on which the decision depends.
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
    # A run would still break, because a kept old file can need old versions of further files. So
    # keep the old versions of all files.
    waiting = (
        f"the change takes effect only together with the changes of {', '.join(sorted(reasons))}"
    )
    return Settled(dict(old), dict.fromkeys(sorted(changed), waiting) | reasons)


def _to_check(changed: set[str], new: Tree, in_force: Mapping[str, set[str]]) -> list[str]:
    """List the files whose import can give a different result after the change."""
    names = {name for name in changed if name.endswith((".py", ".zip"))}
    if not changed <= in_force.keys():
        names |= in_force.keys()  # any DAG file can import or read a changed file without DAGs
    return sorted(names & new.keys())


def _reasons(tree: Tree, old: Tree, answers: Mapping[str, Answer], rules: Rules) -> dict[str, str]:
    """Return file with DAGs in force → the reason why its version in `tree` would break a run."""
    kept = rules.in_force.keys() & old.keys()
    broken = {
        name: text for name, text in answers.items() if isinstance(text, str) and name in kept
    }
    as_before = [name for name in broken if tree.get(name) == old[name]]
    for name, text in rules.check(old, sorted(as_before)).items():
        if isinstance(text, str):  # fails in `old` too: the change is not the cause
            del broken[name]
    seen = {name for name in kept if name not in tree or isinstance(answers.get(name), dict)}
    return _lost(seen, tree, answers, rules) | broken


def _lost(
    names: set[str], tree: Tree, answers: Mapping[str, Answer], rules: Rules
) -> dict[str, str]:
    """Return file → message about its first DAG or task that a run needs but no file defines."""
    everywhere = [found for found in answers.values() if not isinstance(found, str)]
    needed = rules.needs({dag for name in names for dag in rules.in_force[name]})
    lost = {}
    for name in sorted(names):
        own = answers.get(name, {})
        looked_at = [own] if rules.are_bound and not isinstance(own, str) else everywhere
        now = {dag: set(tasks) for found in looked_at for dag, tasks in found.items()}
        for dag in sorted(rules.in_force[name] & needed.keys()):
            missing = sorted(needed[dag] - now.get(dag, set()))
            if dag not in now or missing:
                what = f"DAG {dag}" if dag not in now else f"task {missing[0]} of DAG {dag}"
                which = f"the file no longer has {what}" if name in tree else "the file is deleted"
                lost[name] = f"{which}, but a run still needs {what}; {_REMEDY}"
                break
    return lost
