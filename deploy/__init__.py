"""Bring a stack up on a machine: plain Python in a small environment of its own."""
