"""The stack of containers, run by Docker Compose."""
