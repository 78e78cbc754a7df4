"""Hypothesis profiles: `ci` (the default) tries the same examples on every run, `nightly` looks for new ones.

What is tested is the kernels, from the first call on.
"""

from hypothesis import HealthCheck, settings

from normstab.numerics.first_calls import FIRST_CALLS

# No deadlines: the first use of a compiled kernel takes seconds, and times are not what the suite asserts.
SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=SLOW_IS_FINE, print_blob=True)
settings.register_profile(
    "nightly", derandomize=False, deadline=None, max_examples=2000, suppress_health_check=SLOW_IS_FINE, print_blob=True
)
settings.load_profile("ci")

FIRST_CALLS.end()
