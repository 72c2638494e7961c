"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """A mistake of the user's that one sentence can explain; command-line tools print it and
    exit 1, without a traceback."""
