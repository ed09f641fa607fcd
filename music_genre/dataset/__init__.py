"""The split that each track is in, and the crops that are cut from its image."""
