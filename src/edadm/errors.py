"""The one exception that the command line turns into a single line and exit code 2."""

LONGEST = 2000  # characters of a message


class InputError(Exception):
    r"""What the user gave cannot be used; the message says what, where and how to mend it.

    It is one line of printable characters whatever it quotes: names and values come from files of strangers, and can
    hold line breaks, a terminal's commands or megabytes.

    >>> print(InputError("a file's name can be \n this"))
    a file's name can be \n this
    """

    def __str__(self) -> str:
        text = super().__str__()
        text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
        half = LONGEST // 2 - 2
        return text if len(text) < LONGEST else f"{text[:half]} … {text[-half:]}"
