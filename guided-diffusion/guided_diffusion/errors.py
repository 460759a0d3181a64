"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Input that cannot be used. Its message is one line: what was given, what is allowed, what to do.

    Command-line programs print the message to stderr and exit with status 2.
    """
