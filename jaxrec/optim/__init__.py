"""Optimisers: the row-sparse form of any elementwise optax transformation, a learning rate per path, penalties."""

from jaxrec.optim._hyperparams import hyperparams, with_hyperparams
from jaxrec.optim._penalties import ewc, l2_sp
from jaxrec.optim._row_sparse import Optimizer, RowGrads, dense, row_sparse
from jaxrec.optim._transforms import per_path, rowwise_adagrad

__all__ = [
    "Optimizer",
    "RowGrads",
    "dense",
    "ewc",
    "hyperparams",
    "l2_sp",
    "per_path",
    "row_sparse",
    "rowwise_adagrad",
    "with_hyperparams",
]
