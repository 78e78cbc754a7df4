"""What `from normstab.testing import ...` gives, and what it costs."""

import subprocess
import sys

import normstab.testing
from normstab.testing import assertions


def test_the_assertions_are_offered_by_the_package():
    for name in normstab.testing.__all__:
        assert getattr(normstab.testing, name) is getattr(assertions, name)


def test_importing_the_package_and_the_plugin_loads_no_torch():
    code = "import sys, normstab.testing, normstab.testing.plugin; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
