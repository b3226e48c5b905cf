"""The base of every error that a user can mend."""


class SnowballError(ValueError):
    """Input that is refused; the message says what, where, and what to do about it."""
