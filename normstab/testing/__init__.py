"""Testing: assertions, hypothesis strategies and the pytest plugin, for the test suites of users.

`assert_stable` and `check_stable` load on first use: importing normstab.testing does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normstab.testing.assertions import Stability, assert_stable, check_stable

__all__ = ["Stability", "assert_stable", "check_stable"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'normstab.testing' has no attribute {name!r}")
        from normstab.testing import assertions

        return getattr(assertions, name)
