"""The documents name every command, variable and make target; all that they name exists."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.containers import environment

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SETTINGS = (REPOSITORY / "docs" / "settings.md").read_text()
COMMANDS = (REPOSITORY / "docs" / "cli.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
DOCS = sorted({*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("docs/how-to/*.md")})
PAGES = [*REPOSITORY.glob("*.md"), *DOCS]
DECISIONS = sorted(REPOSITORY.glob("docs/decisions/*.md"))
OF_OURS = re.compile(r"\b(?:MUSIC_GENRE|FLEET)_[A-Z_]+[A-Z]\b")


def sources() -> str:
    folders = ("music_genre", "fleet", "deploy", "dags")
    files = [each for name in folders for each in (REPOSITORY / name).rglob("*.py")]
    compose = [REPOSITORY / "docker-compose.yml", *(REPOSITORY / "deploy/compose").glob("*.yml")]
    return "\n".join(each.read_text() for each in [*files, *compose])


def variables() -> set[str]:
    """Our own environment variables that the code or a Compose file names."""
    return set(OF_OURS.findall(sources()))


def verbs() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*?## ", MAKEFILE, re.M)) - {"help"}


def programs() -> set[str]:
    """The commands of `python -m deploy` and `python -m fleet`."""
    shown = {name for name, command in main.commands.items() if not command.hidden}
    text = (REPOSITORY / "fleet" / "__main__.py").read_text()
    return shown | set(re.findall(r'add_parser\(\s*"([a-z-]+)"', text))


def absent(names: Iterable[str], page: str) -> list[str]:
    """The names that a page does not show in backticks."""
    return [name for name in names if not re.search(rf"`(?:make )?{re.escape(name)}`", page)]


@pytest.mark.parametrize(("found", "least"), [(variables, 16), (verbs, 27), (programs, 14)])
def test_each_is_in_the_page_of_settings(found, least):
    names = found()
    assert len(names) >= least, "fewer than there were: the search finds them no more"
    assert absent(names, SETTINGS) == []


def test_a_variable_that_the_page_lacks_is_found():
    assert absent([*variables(), "MUSIC_GENRE_PLANTED"], SETTINGS) == ["MUSIC_GENRE_PLANTED"]


def test_variables_of_the_pages_exist():
    exist = variables() | environment.variables()
    named = {name for page in PAGES for name in OF_OURS.findall(page.read_text())}
    assert len(named) >= 16
    assert named - exist == set()


def test_variables_of_make_exist():
    table = SETTINGS.partition("## Verbs of make")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.M)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(named) >= 10
    used = MAKEFILE + (REPOSITORY / "tests" / "conftest.py").read_text()
    assert [name for name in named if not re.search(rf"\b{name}\b", used)] == []


def test_commands_of_the_pages_exist():
    exist = set(re.findall(r"^## ([a-z-]+)$", COMMANDS, re.M))
    assert len(exist) >= 13
    named = {
        word
        for page in PAGES
        for word in re.findall(r"music-genre ([a-z]+(?:-[a-z]+)*)\b(?!:)", code_of(page))
    }
    assert len(named) >= 9
    assert named - exist == set()


def code_of(page: Path) -> str:
    """The code blocks and the inline code of a page."""
    text = page.read_text()
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S))


def test_options_of_the_pages_exist():
    """Every option of a `music-genre` line on a page is in docs/cli.md or in the code."""
    known = set(re.findall(r"--[a-z_-]+", COMMANDS + sources()))
    lines = {
        line
        for page in PAGES
        for line in code_of(page).splitlines()
        if re.match(r"`?music-genre |`?\.venv/ml/bin/music-genre ", line)
    }
    assert len(lines) >= 10
    named = {option for line in lines for option in re.findall(r" (--[a-z_-]+)", line)}
    assert named - known == set()


def test_the_index_leads_to_every_page():
    index = REPOSITORY / "docs" / "README.md"
    pages = {str(path.relative_to(index.parent)) for path in DOCS if path != index}
    assert len(pages) >= 19
    assert {name for name in pages if f"({name})" not in index.read_text()} == set()


def broken_links(page: Path) -> list[str]:
    """The page's links to files or headings that do not exist."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inside = [link for link in links if not re.match(r"https?:", link)]
    return [link for link in inside if not leads_somewhere(page, *link.partition("#")[::2])]


def leads_somewhere(page: Path, file: str, heading: str) -> bool:
    target = page.parent / file if file else page
    if not target.exists():
        return False
    return not heading or heading in anchors_of(target.read_text())


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n[1](page.md#a-title) [2](page.md#b) [3](none.md) [4](#a-title)")
    assert broken_links(page) == ["page.md#b", "none.md"]
