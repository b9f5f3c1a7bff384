"""The one exception that the command line turns into a single line and exit code 2."""


class InputError(Exception):
    """What the user gave cannot be used; the message says what, where and how to mend it."""
