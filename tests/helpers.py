"""Small tools for tests."""

import contextlib
from collections.abc import Iterator

import jaxtyping
import pytest


@contextlib.contextmanager
def refuses(error: type[Exception], message: str) -> Iterator[None]:
    """``pytest.raises`` as a user meets it: without the annotations being checked before the function is entered."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(error, match=message):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
