"""Small tools for tests."""

import contextlib
from collections.abc import Iterator

import jaxtyping
import pytest


@contextlib.contextmanager
def untyped() -> Iterator[None]:
    """The library as users have it: without annotations being checked before a function is entered."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@contextlib.contextmanager
def refuses(error: type[Exception], message: str) -> Iterator[None]:
    """``pytest.raises`` as a user meets it."""
    with untyped(), pytest.raises(error, match=message):
        yield
