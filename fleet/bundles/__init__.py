"""Snapshots of the DAG folders that people edit, and the rules for which changes take effect."""
