"""The failure of a command for a reason that its user can act on."""


class CommandError(Exception):
    """A command cannot go on; the message is one line that says why."""
