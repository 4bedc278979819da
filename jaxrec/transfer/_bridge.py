"""Bridges between domains: from what is known of a shared user in the source to a vector of the target."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxrec import optim
from jaxrec._expect import one_of
from jaxrec._recommender import Recommender
from jaxrec.coldstart import map_content
from jaxrec.coldstart._backbone import over
from jaxrec.models import Bridge
from jaxrec.train import fit
from jaxrec.transfer._carry import carried, of_shared

_GENTLY = optim.row_sparse(optax.adam(1e-4))  # from a map that fits already; 1e-3 did harm on validation


def emcdr(
    source: Recommender,
    target: Recommender,
    *,
    kind: Literal["linear", "mlp"] = "linear",
    l2: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Recommender:
    """Users who are new to the target get the vector that theirs in the source is mapped to (EMCDR).

    The map from source vectors to target vectors is learned on the users trained in both, each counting as one, by
    squared error. Users whom the target has trained keep its vectors, items too; who is in neither domain gets the mean
    of the target's users. Vectors of the source are centred and scaled by one number before. Of an item that the target
    has not trained only its interactions are read, and no features (``coldstart.mix`` keeps each part's own).

    Args:
      source: trained on the other domain: any whose scores are inner products.
      target: likewise. Users are the same by raw id. Its features of users, if it has any, are not read by the map.
      kind: ``"linear"`` with an intercept, a ridge regression in closed form, or ``"mlp"``, a perceptron.
      l2: of the ridge, on sums over users; by default what generalised cross-validation chooses.
      seed: of the perceptron.
      options: for the perceptron: ``hidden``, and what ``fit`` takes: epochs, optimizer, ... ``validation`` has to hold
        some users whom the target has not trained and the source knows.

    Returns:
      The target's recommender, which knows all users of the source; see ``coldstart.map_content``.

    Raises:
      ValueError: a recommender does not factorise or reads context, fewer than two users were trained in both, the
        target has rows of users or items without training interactions (as after ``adapt`` or ``blend``), an option
        belongs to the other kind, or ``validation`` has nobody whom the map serves.

    References:
      Man et al., Cross-domain recommendation: an embedding and mapping approach, IJCAI 2017 (over any factorisations;
      ridge instead of stochastic descent for the linear map).
    """
    one_of(kind, ("linear", "mlp"), "kind")
    target, train = carried(source, target)
    kinds: dict[str, Literal["ridge", "mlp"]] = {"linear": "ridge", "mlp": "mlp"}
    if kind == "mlp":
        train = of_shared(train)
    return map_content(target, train, side="user", kind=kinds[kind], l2=l2, seed=seed, **options)


def ptupcdr(
    source: Recommender, target: Recommender, *, hidden: tuple[int, ...] = (64,), seed: int = 0, **options: Any
) -> Recommender:
    r"""A bridge of each user's own, made from what they touched in the source (PTUPCDR).

    .. math:: v_u = b + s_u \bigl(W + M(h_u)\bigr)

    maps a user's vector :math:`s_u` of the source, with :math:`h_u` the mean vector of the items that the user touched
    there and :math:`M` a perceptron whose output is laid out as a matrix. It is trained on what the users of both
    domains touched in the target, by their scores there (not by the distance of vectors), with the target's items
    fixed. :math:`W` and :math:`b` start at the linear map of ``emcdr`` and :math:`M` at 0.

    Args:
      source: trained on the other domain: any whose scores are inner products.
      target: likewise. Users are the same by raw id.
      hidden: widths of the perceptron's hidden layers.
      seed: of the initial parameters and of training.
      options: for ``fit``: loss, epochs, negatives, optimizer, ... Histories in the target's batches are of the target.

    Returns:
      The target's recommender, which knows all users of the source. Users whom the target has trained keep its vectors.

    Raises:
      ValueError: as for ``emcdr``.

    References:
      Zhu et al., Personalized transfer of user preferences for cross-domain recommendation, WSDM 2022 (the mean of the
      history instead of attention over it; a map common to all beside the personal one; any loss of ``fit``).
    """
    linear = emcdr(source, target)
    target, train = carried(source, target, taste=True)
    head = Bridge(hidden=hidden, keeps=False)
    model, params = over(target, train, seed=seed, user=head, link=target.link)
    params["user"]["kernel"] = jnp.array(linear.params["user"]["mlp"]["0"]["kernel"])
    params["user"]["bias"] = jnp.array(linear.params["user"]["bias"])
    options = {"optimizer": _GENTLY} | options
    fitted = fit(model, of_shared(train), params=params, freeze="backbone/*", seed=seed, **options)
    model = dataclasses.replace(model, user=dataclasses.replace(head, keeps=True))
    return fitted.replace(model=model, seen=target.seen, num_trained=target.num_trained, folding=target.folding)
