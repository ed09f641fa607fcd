"""Assign tracks to splits, and cut crops from the tracks' images."""
