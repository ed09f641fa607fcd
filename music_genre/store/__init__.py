"""What stages leave behind and how it survives: files and their names, runs, locks, signals."""
