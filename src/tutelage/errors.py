"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Something the user can put right; ends in one line on stderr and exit code 2.

    The message names the thing, its value and the way out.
    """
