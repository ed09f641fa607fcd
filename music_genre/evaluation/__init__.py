"""Measure a trained model, and use the model to predict the genres of files."""
