"""DAG files: snapshots of the folders that people edit, and which changes may be in force."""
