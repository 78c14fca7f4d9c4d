"""The error that a person can put right."""


class BatchAssetsError(Exception):
    """Something is wrong that the user can mend; the message says what, where and what to do."""
