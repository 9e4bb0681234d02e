"""Small pictures that several tests use."""

import numpy
import pytest
from numpy.typing import NDArray


@pytest.fixture
def black() -> NDArray[numpy.uint8]:
    """A black picture, 24 wide and 16 high."""
    return numpy.zeros((16, 24, 3), numpy.uint8)
