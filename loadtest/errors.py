"""The one exception the command line turns into a sentence."""


class LoadTestError(Exception):
    """A load test cannot start, or a report cannot be read; says what was found, what was expected, what to do."""
