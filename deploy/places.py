"""Where things are, and what both stacks call the same."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENTS = REPOSITORY / ".venv"
AIRFLOW_PYTHON = ENVIRONMENTS / "airflow" / "bin" / "python"
DEMO_MUSIC = REPOSITORY / "deploy" / "demo_music" / "genres_original"
ADMIN = "admin"
PORTS = {"WEB_PORT": 8080, "FLOWER_PORT": 5555}
"""Of Airflow and of Flower, where none is chosen."""
TRAINING_DAG = "music_genre_training"
