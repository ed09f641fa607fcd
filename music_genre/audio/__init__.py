"""Files of audio: their headers, their samples, the catalogue of them."""
