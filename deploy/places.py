"""Paths, and the names that both stacks share."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENTS = REPOSITORY / ".venv"
AIRFLOW_PYTHON = ENVIRONMENTS / "airflow" / "bin" / "python"
DEMO_MUSIC = REPOSITORY / "deploy" / "demo_music" / "genres_original"
ADMIN = "admin"
PORTS = {"WEB_PORT": 8080, "FLOWER_PORT": 5555}
"""The default ports of Airflow and Flower."""
TRAINING_DAG = "music_genre_training"
