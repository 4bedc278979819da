"""Products in full float32, which accelerators round to fewer digits unless they are told."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

_Function = TypeVar("_Function", bound=Callable[..., Any])


def exact(function: _Function) -> _Function:
    """The function with its matrix products in full float32; under ``jit``, as a decorator below it."""

    @functools.wraps(function)
    def inside(*args: Any, **options: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **options)

    return cast(_Function, inside)
