"""Attribute-to-factor maps: from content to the vectors of a trained recommender."""

import dataclasses
import time
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxrec import _tree
from jaxrec._expect import expect, one_of
from jaxrec._recommender import Recommender
from jaxrec._types import Params
from jaxrec.coldstart._backbone import (
    OPTIMIZER,
    check,
    distinct,
    need_features,
    need_same_target,
    over,
    penalty_alone,
    trained,
    weighing,
    width_of,
)
from jaxrec.coldstart._ridge import ridge
from jaxrec.data import Dataset
from jaxrec.data._sides import Side, label_shares
from jaxrec.models import BackboneTowers, ContentMap
from jaxrec.train import fit


def map_content(
    backbone: Recommender,
    train: Dataset,
    *,
    side: Literal["user", "item"] = "item",
    kind: Literal["ridge", "mlp"] = "ridge",
    l2: float | None = None,
    hidden: tuple[int, ...] | None = None,
    code_dim: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Recommender:
    r"""Cold users or items get the vector that their content is mapped to; trained ones keep the backbone's.

    The map is learned on the side's trained entities with content, each counting as one; those whose interactions all
    weigh 0 are cold. Whoever has no content gets the mean of the trained vectors. What the backbone says of trained
    users and items stays as it was, and so does how it folds interactions in. To map both sides, call it again on the
    result.

    Args:
      backbone: from ``fit``, ``fit_als``, or this function for the other side: any whose scores are inner products.
      train: the training part that the backbone was fitted on. Only its features and which entities are trained count,
        so the backbone need not know of the features. A target is of the same name and scale.
      side: whose content is mapped.
      kind: ``"ridge"``, a linear map in closed form, where an entity's labels of one feature share a weight of 1, or
        ``"mlp"``, a perceptron.
      l2: of the ridge, on sums over entities; by default what generalised cross-validation chooses. All features are
        penalised alike, so their scales matter.
      hidden: widths of the perceptron's hidden layers, by default ``(256,)``.
      code_dim: width of the perceptron's embedding of a category or label, by default 16.
      seed: of the perceptron.
      options: for ``fit`` of the perceptron: epochs, optimizer, ... ``validation`` has to hold some of the side that
        were not trained and have content: of others the map says nothing.

    Returns:
      A recommender of ``models.BackboneTowers`` with a ``models.ContentMap``. The history has the mean squared error:
      of the ridge with each entity left out, beside ``l2``; of the perceptron in units of the vectors' variance.

    Raises:
      ValueError: the side has no features, no trained entity has content, the backbone does not factorise, does not
        fit the data, predicts another target or knows users or items that ``train`` does not, an option belongs to the
        other kind, or ``validation`` has nobody whom the map serves.

    References:
      Gantner et al., Learning attribute-to-feature mappings for cold-start recommendations, ICDM 2010 (the maps that
      minimise squared error).
    """
    one_of(side, ("user", "item"), "side")
    one_of(kind, ("ridge", "mlp"), "kind")
    check(backbone, train)
    need_same_target(backbone, train)
    _need_nobody_added(backbone, train)
    train = weighing(train)
    need_features(train, side, "map_content")
    if kind == "ridge":
        if hidden is not None or code_dim is not None or options:
            given = [name for name, value in (("hidden", hidden), ("code_dim", code_dim)) if value is not None]
            raise ValueError(
                f"A ridge is solved in closed form and takes no {', '.join([*given, *options])}. Leave them out, or "
                "say kind='mlp'."
            )
        if l2 is not None and not l2 > 0:
            raise ValueError(f"Expected l2 > 0, or None to choose it, got {l2}.")
        return _map_by_ridge(backbone, train, side, l2, seed)
    if l2 is not None:
        raise ValueError("l2= is the ridge's. Give a perceptron an optimizer= with weight decay instead.")
    head = ContentMap(hidden=(256,) if hidden is None else hidden, code_dim=16 if code_dim is None else code_dim)
    model, params = _with_map(backbone, train, side, head, seed)
    if options.get("validation") is not None and not callable(options.get("metric")):
        _need_served(options["validation"], train, model, side)
    training = dataclasses.replace(model, similarity=1.0, link=backbone.link)
    rows = distinct(train, side)
    frozen = tuple(f"{name}/*" for name in params if name != side)
    options = {"optimizer": OPTIMIZER} | options
    fitted = fit(training, rows, loss=penalty_alone, params=params, freeze=frozen, seed=seed, **options)
    return fitted.replace(model=model, **_kept(backbone, train))


def _need_nobody_added(backbone: Recommender, train: Dataset) -> None:
    ours, theirs = backbone.encoder, train.encoder
    users, items = len(ours.users) - len(theirs.users), len(ours.items) - len(theirs.items)
    if users or items:
        raise ValueError(
            f"The backbone knows {users} users and {items} items that the training part does not, as after "
            "coldstart.add, and they would be lost. Map the backbone from before, and add them to the result."
        )


def _need_served(validation: Dataset, train: Dataset, model: BackboneTowers, side: Side) -> None:
    """Whoever was trained keeps the backbone's vector, and a metric of them alone is the same after every epoch."""
    expect(validation, Dataset, "validation")
    train.encoder.check(validation.encoder)
    index = validation.user if side == "user" else validation.item
    assert index is not None
    index = np.unique(index)
    row = np.asarray(train.features.user_row if side == "user" else train.features.item_row)
    cold = jnp.asarray(index[(index > 0) & (row[index] == 0)])
    if not np.asarray(model.content(side).described(cold, train.features)).any():
        raise ValueError(
            f"The validation part has nobody whom the map serves, no {side} without training interactions and with "
            "content (across domains: a vector of the source), so its metric is the same after every epoch. Split by "
            f"{side}s (data.split_cold_{side}s), or leave validation= out."
        )


def _kept(backbone: Recommender, train: Dataset) -> dict[str, Any]:
    """What a recommender over the backbone has in common with it; interactions since its training are some of it."""
    features = train.features
    return {
        "seen": backbone.seen.sized(len(features.user_row), len(features.item_row)),
        "num_trained": backbone.num_trained,
        "folding": backbone.folding,
    }


def _with_map(
    backbone: Recommender, train: Dataset, side: Side, head: ContentMap, seed: int
) -> tuple[BackboneTowers, Params]:
    """A map on one side; the other side's stays, if the backbone has one."""
    other = "user" if side == "item" else "item"
    before = backbone.model
    kept = isinstance(before, BackboneTowers) and isinstance(getattr(before, other), ContentMap)
    heads = {side: head} | ({other: getattr(before, other)} if kept else {})
    model, params = over(backbone, train, seed=seed, **heads)
    if kept:
        params[other] = _tree.copied(backbone.params[other])
    return model, params


def _map_by_ridge(backbone: Recommender, train: Dataset, side: Side, l2: float | None, seed: int) -> Recommender:
    start = time.perf_counter()
    width = width_of(backbone)
    model, params = _with_map(backbone, train, side, ContentMap(hidden=(), code_dim=width), seed)
    entities = trained(train, side)
    content = model.content(side)
    with_content = np.asarray(content.described(jnp.asarray(entities, jnp.int32), train.features))
    if not with_content.any():
        raise ValueError(f"No trained {side} has any content, so there is nothing to learn a map from.")
    entities = entities[with_content]
    of_side = params["backbone"][side]
    row = np.asarray(train.features.user_row if side == "user" else train.features.item_row)
    inputs = content_inputs(train, side, entities)
    found = ridge(np.concatenate(list(inputs.values()), axis=1), np.asarray(of_side["embedding"])[row[entities]], l2=l2)
    # The map is linear in labels because each feature's embedding is as wide as the vectors and added as it is.
    mean, deviation = (np.asarray(of_side[name], np.float64) for name in ("mean", "deviation"))
    kernel, at = [], 0
    for name, part in inputs.items():
        weights = found.kernel[at : at + part.shape[1]] / deviation
        at += part.shape[1]
        if name:
            table = np.concatenate([np.zeros((1, width)), weights])
            params[side]["features"][name]["embedding"] = jnp.asarray(table, jnp.float32)
        kernel.append(np.eye(width) if name else weights)
    params[side]["mlp"]["0"]["kernel"] = jnp.asarray(np.concatenate(kernel), jnp.float32)
    params[side]["bias"] = jnp.asarray((found.intercept - mean) / deviation, jnp.float32)
    row_of_log = {"epoch": 1, "loss": found.error, "l2": found.l2, "seconds": time.perf_counter() - start}
    kept = _kept(backbone, train)
    return Recommender(model, params, train.encoder, **kept, link=backbone.link, log=(row_of_log,))


def content_inputs(train: Dataset, side: Side, entities: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of the regression, float32: dense ones under an empty name, then shares of labels by feature."""
    features = train.features._asdict()
    dense, inputs = features[f"{side}_dense"], {}
    if dense is not None:
        inputs[""] = np.asarray(dense)[entities]
    for name, rows in dict(getattr(train.sizes, f"{side}_codes")).items():
        codes = np.asarray(features[f"{side}_codes"][name])[entities]
        inputs[name] = label_shares(codes, rows, np.float32)
    return inputs
