"""Drawing and reading log-mel images of tracks."""
