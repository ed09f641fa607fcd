"""The table at the end of a sweep: every candidate with its accuracies."""

from typing import Any


def ranked(
    candidates: list[dict[str, Any]],
    trained: list[dict[str, Any] | None],
    evaluated: list[dict[str, Any] | None],
) -> list[dict[str, Any]]:
    """Sort candidates by validation accuracy, best first; untrained candidates are last."""
    rows = []
    for wanted, training, evaluation in zip(candidates, trained, evaluated, strict=True):
        found, measured = training or {}, evaluation or {}
        figures = {
            "validation_accuracy": found.get("validation_accuracy"),
            "test_accuracy": measured.get("accuracy"),
        }
        rows.append({**figures, **wanted, "run": found.get("run")})
    return sorted(rows, key=lambda row: (row["run"] is None, -(row["validation_accuracy"] or 0)))


def in_words(row: dict[str, Any]) -> str:
    """Format one candidate's line for the log."""
    figures = [f"{name} {told(row[f'{name}_accuracy'])}" for name in ("validation", "test")]
    return f"{', '.join(figures)}: {row['model']}, seed {row['seed']}, run {row['run']}"


def told(accuracy: float | None) -> str:
    """Format an accuracy with three decimals; `none` if there is no accuracy."""
    return "none" if accuracy is None else f"{accuracy:.3f}"
