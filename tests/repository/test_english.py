"""Plain English: phrases that a reader had to read twice are banned."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BANNED = (
    r"\bmend(s|ed|ing)?\b",  # write "fix" or "correct" instead
    r"who has none",
    r"fits? to it",
    r"is no NAME",
    r"what came of",
    r"in the wink of",
    r"none of ours",
    r"gone on with",
)
KINDS = (".py", ".md", ".yml", ".toml", ".env", ".example", ".sh")
LEFT_OUT = {"tests/repository/test_english.py", "docs/soak.md"}
"""Not searched: this file, and a page that lists the names of tests."""


def texts() -> dict[str, str]:
    listed = subprocess.check_output(["git", "ls-files"], cwd=REPOSITORY, text=True).splitlines()
    kept = [name for name in listed if name.endswith(KINDS) and name not in LEFT_OUT]
    return {name: (REPOSITORY / name).read_text() for name in kept}


def test_no_text_has_a_banned_word():
    found = texts()
    assert len(found) > 200, "the search finds less than there is"
    lines = [
        f"{name}:{number}: {line.strip()}"
        for name, text in found.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search("|".join(BANNED), line)
    ]
    assert lines == []


@pytest.mark.parametrize("line", ["mend it", "the input was mended", "of those who has none"])
def test_a_banned_word_would_be_found(line):
    assert re.search("|".join(BANNED), line)
    assert not re.search("|".join(BANNED), "recommended, amended, dividend")
