"""Which track is in which split, and the crops that are taken of its image."""
