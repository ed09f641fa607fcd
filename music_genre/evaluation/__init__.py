"""Measure a trained model, and predict the genres of files with it."""
