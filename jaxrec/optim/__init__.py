"""Optimisers: the row-sparse form of any elementwise optax transformation, and a learning rate per path."""

from jaxrec.optim._row_sparse import Optimizer, RowGrads, dense, row_sparse
from jaxrec.optim._transforms import per_path, rowwise_adagrad

__all__ = ["Optimizer", "RowGrads", "dense", "per_path", "row_sparse", "rowwise_adagrad"]
