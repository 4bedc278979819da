"""Heater over a trained recommender."""

import dataclasses
from typing import Any

from jaxrec._recommender import Recommender
from jaxrec.coldstart._backbone import OPTIMIZER, check, described, need_features, over
from jaxrec.data import Dataset, Negatives
from jaxrec.models import Heater
from jaxrec.train import fit


def heater(
    backbone: Recommender,
    train: Dataset,
    *,
    experts: int = 5,
    hidden: tuple[int, ...] = (128,),
    refine: tuple[int, ...] = (128,),
    alpha: float = 1.0,
    share: float = 0.5,
    code_dim: int = 16,
    seed: int = 0,
    **options: Any,
) -> Recommender:
    """A mixture of experts maps content into the backbone's space; both are refined to fit the interactions.

    While training an entity is fed what its content is mapped to with probability ``share``, else the backbone's vector
    (randomized training), and the squared distance of the two joins the loss (the similarity constraint). Afterwards
    who was trained is fed the backbone's vector and who was not the mapped one; without content, the mean.

    Args:
      backbone: from ``fit`` or ``fit_als``: any whose scores are inner products.
      train: the training part that the backbone was fitted on; its features are read, which the backbone need not know.
      experts: number of perceptrons in the mixture.
      hidden: widths of their hidden layers.
      refine: widths of the hidden layers of the refinement.
      alpha: weight of the similarity constraint, whose mean is in units of the vectors' variance.
      share: probability, in [0, 1].
      code_dim: width of the embedding of a category or label.
      seed: of the initial parameters, the randomized training and the order of examples.
      options: for ``fit``: loss, epochs, batch_size, optimizer, validation, ... ``loss="mse"`` is the paper's, then
        with 5 negatives to a positive; the default for implicit feedback maps an item to an example instead of six.

    Returns:
      A recommender of ``models.BackboneTowers`` with a ``models.Heater`` on both sides.

    Raises:
      ValueError: the data has no features, the backbone does not factorise or does not fit the data, or ``fit`` refuses
        an option.

    References:
      Zhu et al., Recommendation for new users and new items via randomized training and mixture-of-experts
      transformation, SIGIR 2020 (another loss by default).
    """
    check(backbone, train)
    if not described(train, "user"):
        need_features(train, "item", "heater")
    head = Heater(experts=experts, hidden=hidden, refine=refine, share=share, code_dim=code_dim)
    model, params = over(backbone, train, seed=seed, user=head, item=head)
    training = dataclasses.replace(model, similarity=alpha, link="rank" if backbone.link == "rank" else None)
    if options.get("loss") == "mse" and train.target is None:
        options = {"negatives": Negatives(num=5)} | options
    options = {"optimizer": OPTIMIZER} | options
    fitted = fit(training, train, params=params, freeze="backbone/*", seed=seed, **options)
    return dataclasses.replace(fitted, model=model)
