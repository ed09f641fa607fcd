"""Log-mel images of tracks, drawn or read."""
