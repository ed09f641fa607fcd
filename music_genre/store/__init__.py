"""The output of stages and how it survives: files and their names, runs, locks, signals."""
