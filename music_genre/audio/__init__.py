"""Audio files: their headers, their samples and their catalogue."""
