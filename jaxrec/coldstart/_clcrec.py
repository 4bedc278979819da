"""Contrastive learning for cold items, from scratch or from a trained factorisation."""

from typing import Any

import jax

from jaxrec._recommender import Recommender
from jaxrec.coldstart._backbone import reserve
from jaxrec.coldstart._vectors import vectors_by_row
from jaxrec.data import Dataset
from jaxrec.models import CLCRec
from jaxrec.train import fit


def clcrec(
    train: Dataset,
    *,
    backbone: Recommender | None = None,
    dim: int | None = None,
    hidden: tuple[int, ...] = (256,),
    code_dim: int = 16,
    temperature: float = 0.2,
    alignment: float = 0.3,
    mix: float = 0.5,
    **options: Any,
) -> Recommender:
    """Recommends items that nobody has touched from their content, by contrastive learning.

    Embeddings of users and items and an encoder of content are trained together, see ``models.CLCRec``.

    Args:
      train: implicit feedback, with item features.
      backbone: a trained recommender whose user and item vectors the embeddings start from; random ones by default.
        They go on learning: ``freeze=("user/embedding", "item/embedding")`` keeps them.
      dim: width of the vectors; by default the backbone's, or 64.
      hidden: widths of the encoder's hidden layers.
      code_dim: width of the embedding of a category or label.
      temperature: of the term that aligns embedding and content.
      alignment: its weight.
      mix: probability that training scores a warm item by its content.
      options: of ``fit``, such as ``epochs``, ``validation``, ``metric``, ``seed``.

    Returns:
      A recommender of a ``CLCRec``.

    Raises:
      ValueError: there are no item features, an option is out of range, or the backbone does not factorise, does not
        know the same entities, was not trained on all of them or is of another width.

    References:
      Wei et al., Contrastive learning for cold-start recommendation, MM 2021.
    """
    if backbone is not None:
        reserve(options, "clcrec with a backbone", "params")
    tables = None if backbone is None else vectors_by_row(backbone, train)
    width = 64 if tables is None else tables["user"].shape[1]
    if tables is not None and dim not in (None, width):
        raise ValueError(f"Expected the backbone's dim {width}, got {dim}. Leave it out.")
    model = CLCRec.for_data(
        train, dim=width if dim is None else dim, hidden=hidden, code_dim=code_dim, temperature=temperature,
        alignment=alignment, mix=mix,
    )  # fmt: skip
    if tables is not None:
        params = model.init(jax.random.key(options.get("seed", 0)))
        params["user"]["embedding"], params["item"]["embedding"] = tables["user"], tables["item"]
        options["params"] = params
    return fit(model, train, **options)
