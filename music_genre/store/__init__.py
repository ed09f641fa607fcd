"""Storing the output of stages safely: files and their names, runs, locks, signals."""
