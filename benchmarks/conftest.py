import pytest
from timing import measure_copy_bandwidth


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    """Bytes a second; measured once in a run."""
    return measure_copy_bandwidth()
