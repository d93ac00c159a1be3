"""Errors that a person can mend."""


class UserError(Exception):
    """Bad input: one line for the console, exit code 2."""
