"""The one exception of the lab that is meant for users."""


class LabError(Exception):
    """One line: what failed, the likely cause, the remedy."""
