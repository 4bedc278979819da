"""Several devices: a mesh, and the way back from it. Training, evaluation and top-k take it as ``mesh=``.

A batch is cut by examples, a table by rows; features and the other parameters lie on every device. The functions
stay what they are on one device, so losses over a whole batch, global norms and repeated ids mean the same. Only
touched rows and their gradients travel between devices, never a table.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxrec import _sharded
from jaxrec._types import Params
from jaxrec.models import Model

__all__ = ["make_mesh", "whole"]


def make_mesh(devices: int | Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, of type Auto: shapes stay those of one device, and so does code for one device.

    Args:
      devices: how many of ``jax.devices()``, or which ones; by default all.

    Raises:
      ValueError: there are not so many devices.

    Examples:
      >>> make_mesh(1).size
      1
    """
    if devices is None or isinstance(devices, int):
        available = jax.devices()
        if devices is not None and not 1 <= devices <= len(available):
            raise ValueError(
                f"Expected 1 .. {len(available)} devices (those of jax.devices()), got {devices}. On a CPU, "
                "jax.config.update('jax_num_cpu_devices', n) before anything is computed pretends to have n."
            )
        devices = available[:devices]
    return jax.make_mesh((len(devices),), ("devices",), (AxisType.Auto,), devices=devices)


def whole(model: Model, params: Params) -> Params:
    """Parameters of a state that lies on a mesh as ordinary arrays, with the shapes that the model gives them.

    They pass through the host, and must fit on one device.

    Args:
      model: whose parameters these are.
      params: from ``TrainState.params`` or ``TrainState.frozen``.
    """
    return _sharded.whole(model, params)
