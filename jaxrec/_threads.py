"""Independent work on both cores and more of a CPU, where JAX runs what one thread asks for in order."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax


def useful(most: int) -> int:
    """How many threads are worth having: on CPU one for each core, else one, which keeps a device busy."""
    return min(most, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1


def spread(function: Callable[..., Any], *arguments: Sequence[Any], threads: int) -> list[Any]:
    """``list(map(function, *arguments))`` from several threads, none of which runs ahead of what it has asked for.

    A configuration of JAX that holds in a ``with`` block is not seen by other threads, so ``function`` should be one
    whose result it does not change.
    """
    if threads == 1 or len(arguments[0]) == 1:
        return list(map(function, *arguments))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda *each: jax.block_until_ready(function(*each)), *arguments))
