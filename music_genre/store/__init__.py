"""What stages leave behind and how it survives: artifacts, runs, locks, signals."""
