"""The error that the command line reports in one line, with exit status 1."""


class DeployError(Exception):
    """A command cannot continue; the message says what failed, where, why, and what to do."""
