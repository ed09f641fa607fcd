"""One training: crops in, weights out."""
