"""The one error that the command line turns into one line and exit 1."""


class DeployError(Exception):
    """A command cannot go on; the message names the problem, the item, the finding, the remedy."""
