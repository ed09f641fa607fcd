"""What the documents say about the repository is true."""

import ast
import csv
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
README = (REPOSITORY / "README.md").read_text()
MUSIC = REPOSITORY / "deploy" / "demo_music"


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.check_output(command, cwd=REPOSITORY, text=True).splitlines()
    return [REPOSITORY / name for name in listed if (REPOSITORY / name).exists()]


def test_the_readmes_map_is_the_tree():
    block = re.search(r"## Map\n.*?```\n(.*?)```", README, re.S).group(1)
    named = {line.split()[0].rstrip("/") for line in block.splitlines() if line.strip()}
    missing = [name for name in named if not (REPOSITORY / name).exists()]
    assert not missing
    top = {path.relative_to(REPOSITORY).parts[0] for path in tracked()}
    hidden = {name for name in top if name.startswith(".")}
    assert top - hidden - named == set()


def test_links_between_the_texts_lead_somewhere():
    for text in tracked("*.md"):
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text.read_text()):
            if "://" not in link:
                assert (text.parent / link).exists(), f"{text}: {link}"


def test_the_makefiles_verbs_in_the_texts_exist():
    verbs = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for text in [*tracked("*.md"), *tracked("deploy/*.py")]:
        for verb in re.findall(r"`make ([a-z-]+)", text.read_text()):
            assert verb in verbs, f"{text} names `make {verb}`"


def test_every_airflow_setting_has_its_reason():
    lines = (REPOSITORY / "deploy" / "airflow.env").read_text().splitlines()
    settings = [n for n, line in enumerate(lines) if line and not line.startswith("#")]
    assert settings
    for number in settings:
        assert re.fullmatch(r"AIRFLOW__[A-Z_]+__[A-Z0-9_]+=[^\s'\"][^\s']*", lines[number])
        assert lines[number - 1].startswith("# "), lines[number]


def test_locks_are_hashed_and_hold_no_addresses():
    for lock in tracked("requirements/*.txt"):
        text = lock.read_text()
        assert "://" not in text
        pins = re.findall(r"^[a-z0-9][^\n]*", text, re.M)
        assert pins
        assert all(re.match(r"\S+==\S+.* \\$", pin) for pin in pins), lock
        assert text.count("--hash=sha256:") >= len(pins)


@pytest.mark.parametrize(
    ("lock", "package"),
    [("airflow", "torch"), ("airflow", "dvc"), ("ml", "apache-airflow"), ("deploy", "torch")],
)
def test_the_environments_stay_apart(lock, package):
    text = (REPOSITORY / "requirements" / f"{lock}.txt").read_text()
    assert not re.search(rf"^{package}==", text, re.M)


def test_modules_and_functions_stay_small():
    for path in (each for each in tracked("*.py") if "tests" not in each.parts):
        text = path.read_text()
        assert len(text.splitlines()) <= 300, f"{path} is too long: give it two rooms"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                docstring = (ast.get_docstring(node, clean=False) or "").splitlines()
                length = node.end_lineno - node.lineno + 1 - len(docstring)
                assert length <= 45, f"{path}: {node.name} has {length} lines"


def test_the_licence_is_the_projects():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()


def test_the_changelog_knows_this_version_or_the_next():
    package = (REPOSITORY / "music_genre" / "__init__.py").read_text()
    version = re.search(r'__version__ = "(.+)"', package).group(1)
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"## {version}" in changelog or "## Unreleased" in changelog


def test_the_demo_music_is_what_its_table_says():
    rows = list(csv.DictReader((MUSIC / "tracks.csv").read_text().splitlines()))
    clips = sorted(path for path in MUSIC.rglob("*.ogg"))
    assert sorted(MUSIC / row["path"] for row in rows) == clips
    assert sum(path.stat().st_size for path in clips) <= 12_000_000
    genres = {row["genre"] for row in rows}
    assert len(genres) == 7
    for genre in genres:
        assert len({row["track_id"] for row in rows if row["genre"] == genre}) >= 12
    text = (MUSIC / "README.md").read_text()
    for row in rows:
        assert row["licence"]
        assert f"| {row['source_package']} |" in text


@pytest.mark.parametrize(
    ("fact", "places"),
    [
        (
            '"/var/tmp/music-genre-gpus"',
            ("fleet/contract.py", "music_genre/config.py", "tests/gpu_trainings.py"),
        ),
        ("/var/tmp/music-genre-gpus", ("docker-compose.yml", "docs/least-privilege.md")),
        ('"MUSIC_GENRE_LARGER_GPU"', ("fleet/workers/worker.py", "music_genre/model/device.py")),
    ],
)
def test_what_packages_that_may_not_import_each_other_agree_on_is_the_same(fact, places):
    for place in places:
        assert fact in (REPOSITORY / place).read_text(), place
