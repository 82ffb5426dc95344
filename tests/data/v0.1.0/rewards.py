"""Rewards of the runs that are stored here: whole numbers, so that no rounding of a machine shows in them."""


def letters(completions, **_):
    """How many Latin letters were written."""
    return [float(sum(c.isascii() and c.isalpha() for c in text)) for text in completions]


def length(completions, **_):
    """How many characters were written."""
    return [float(len(text)) for text in completions]
