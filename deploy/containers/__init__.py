"""The stack of containers, by Docker Compose."""
