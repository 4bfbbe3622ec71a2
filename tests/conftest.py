"""Settings of all tests."""

from hypothesis import settings

# examples take longer on a machine with other work; that is no fault
settings.register_profile("graphopt", deadline=None)
settings.load_profile("graphopt")
