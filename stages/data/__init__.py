"""Samples: where they come from and how they become tensors."""


class BadSample(Exception):
    """A sample that cannot be used. The message is the reason; the run goes on without the sample."""
