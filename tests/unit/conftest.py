"""How hypothesis searches: the same examples for everybody, and no time limit per example on a busy machine."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("unit")
