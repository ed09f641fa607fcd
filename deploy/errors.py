"""The error that the command line reports in one line, with exit status 1."""


class DeployError(Exception):
    """A command cannot go on; the message names the problem, the item, the finding, the remedy."""
