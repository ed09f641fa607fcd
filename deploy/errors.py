"""The one fault that the command line turns into one line and exit 1."""


class DeployError(Exception):
    """Something is in the way; the message says what, which, found and the remedy."""
