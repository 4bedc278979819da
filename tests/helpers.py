"""Small tools for tests."""

import contextlib
import importlib.metadata
from collections.abc import Iterator

import jaxtyping
import pytest

FEWER_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")
"""Whether conftest.py turns off a way of emitting loops that this jaxlib is known to have."""

AS_USERS: dict[str, bool | int] = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""Options of ``.compile(compiler_options=...)`` for the program that a user gets, see conftest.py."""
if FEWER_EMITTERS:
    AS_USERS["xla_cpu_use_fusion_emitters"] = True


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
