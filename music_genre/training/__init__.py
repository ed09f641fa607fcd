"""Training of a model: crops in, weights out."""
