"""One flag, `--update-golden`, writes the golden files anew instead of comparing with them."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="Write the golden reports anew.")


@pytest.fixture
def golden(request):
    """Compare a text with the golden file of that name, or write it under --update-golden."""

    def compare(name, text):
        path = GOLDEN / name
        if request.config.getoption("--update-golden", default=False):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; make it with: pytest tests/report --update-golden"
        assert text == path.read_text(encoding="utf-8"), (
            f"{name} changed; look, then: pytest tests/report --update-golden"
        )

    return compare
