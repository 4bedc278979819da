"""What ``fit`` returns: everything that is needed to score, rank, save and go on training."""

import dataclasses
import functools
import operator
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxrec import _sharded
from jaxrec._types import Batch, Features, Folding, Link, Params, Prior
from jaxrec.data import Dataset, Encoder, Interactions
from jaxrec.models import Mixture, Model
from jaxrec.models._base import context_width, factorises


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
    """A model, its parameters, the encoder of its data and what its users have touched. A frozen value.

    Args:
      model: hyper-parameters and pure functions.
      params: nested dict of arrays.
      encoder: ids, features and scaling of the domain.
      seen: interactions of the training part, then those added since; never recommended again by default.
      num_trained: how many of ``seen`` the parameters were trained on.
      link: what turns a score into a prediction in the (scaled) unit of the target, which ``predict`` turns back into
        the target's own; ``"rank"`` where the data has a target and the loss only ordered items, so that there is no
        such prediction.
      log: one row per epoch of the training.
      mesh: devices that share the work of scoring, each with a copy of the parameters; None for one device.
      folding: of ``fit_als``, by which interactions since the training are folded in; None for a softmax.
    """

    model: Model
    params: Params
    encoder: Encoder
    seen: Interactions
    num_trained: int
    link: Link = "identity"
    log: tuple[dict[str, Any], ...] = ()
    mesh: Mesh | None = None
    folding: Folding | None = None

    def on(self, mesh: Mesh | None) -> "Recommender":
        """The same recommender with its parameters and features on every device of a mesh, which share the work."""
        _sharded.check(mesh)
        if mesh is None or mesh == self.mesh:
            return self
        params, features = _sharded.placed((self.params, self.features), _sharded.everywhere(mesh))
        new = dataclasses.replace(self, params=params, mesh=mesh)
        new.__dict__["features"] = features
        if "prior" in self.__dict__:
            new.__dict__["prior"] = self.prior
        return new

    @property
    def history(self) -> pd.DataFrame:
        """The training's log as a table: epoch, loss, seconds and the validation metric where it was computed."""
        return pd.DataFrame(list(self.log))

    @functools.cached_property
    def trained(self) -> Interactions:
        """The interactions that the parameters were trained on; by them users and items are cold or warm."""
        return self.seen.part(slice(self.num_trained))

    @functools.cached_property
    def added(self) -> Interactions:
        """The interactions since the training."""
        return self.seen.part(slice(self.num_trained, None))

    @functools.cached_property
    def features(self) -> Features:
        """The encoder's features on the device."""
        features = jax.device_put(self.encoder.features)
        return features if self.mesh is None else _sharded.placed(features, _sharded.everywhere(self.mesh))

    @property
    def factorises(self) -> bool:
        """Whether scores are inner products of user and item vectors."""
        return factorises(self.model)

    @property
    def derived(self) -> bool:
        """Whether the parameters were counted or solved for and belong to the data they came from (see ``Model``)."""
        return bool(getattr(self.model, "derived", False))

    @property
    def reads_context(self) -> bool:
        """Whether a score may depend on the interaction's own columns, so that there is none for a mere pair."""
        return bool(self.encoder.context) and context_width(self.model) != 0

    @property
    def folds(self) -> bool:
        """Whether a user's vector is folded in from what the user touched since the training."""
        return self.factorises and not (self.derived or self.pooled_history or self.reads_context)

    @property
    def pooled_history(self) -> int:
        """Length of the history that the model reads of a user; 0 if it reads none."""
        return int(getattr(self.model, "history", 0))  # which may be a number of NumPy's

    @functools.cached_property
    def parts(self) -> "tuple[Recommender, ...]":
        """Of a mixture: each part as a recommender of its own, else none."""
        models = self.model.parts if isinstance(self.model, Mixture) else ()
        return tuple(
            self.replace(model=model, params=self.params["parts"].get(str(number), {}))
            for number, model in enumerate(models)
        )

    @functools.cached_property
    def catalogue(self) -> jax.Array:
        """Vectors of all items by entity index ``[capacity, dim]``, for a model that factorises."""
        from jaxrec.ranking._vectors import item_vectors

        return item_vectors(self, np.arange(len(self.encoder.features.item_row), dtype=np.int32))

    def replace(self, **changes: Any) -> "Recommender":
        """A recommender with some fields exchanged. What was computed of the others is kept."""
        new = dataclasses.replace(self, **changes)
        if new.encoder is self.encoder and "features" in self.__dict__:
            new.__dict__["features"] = self.features
        of = operator.attrgetter("num_trained", "folding")
        if "prior" in self.__dict__ and new.params is self.params and of(new) == of(self):
            new.__dict__["prior"] = self.prior
        if self.__dict__.get("parts") and isinstance(new.model, Mixture) and len(new.model.parts) == len(self.parts):
            names = ("encoder", "seen", "num_trained", "mesh", "folding")
            shared = {name: getattr(new, name) for name in names}
            new.__dict__["parts"] = tuple(
                part.replace(model=model, params=new.params["parts"].get(str(number), {}), **shared)
                for number, (part, model) in enumerate(zip(self.parts, new.model.parts, strict=True))
            )
        return new

    @functools.cached_property
    def prior(self) -> Prior:
        """Spread of the trained vectors, for folding in; computed when it is first needed."""
        from jaxrec.ranking._vectors import measure

        return measure(self)

    def check(self, dataset: Dataset) -> None:
        """Raises unless the dataset's entity indices mean the same as this recommender's."""
        self.encoder.check(dataset.encoder)

    def batch(self, users: np.ndarray, context: np.ndarray | None = None) -> Batch:
        """What a model is told of these users (entity indices): ids and the latest of their histories.

        Raises:
          ValueError: the model reads context and none is given.
        """
        if context is None:
            need_no_context(self, "model")
        history = self.seen.latest(users, self.pooled_history) if self.pooled_history else None
        batch = Batch(user=users.astype(np.int32), history=history, context=context)
        return Batch(*(None if values is None else _sharded.shared(self.mesh, values) for values in batch))

    def __repr__(self) -> str:
        count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(self.params))
        return f"Recommender({self.model}, {count:,} parameters, {self.encoder!r}, seen: {self.seen!r})"


def need_no_context(recommender: Recommender, what: str) -> None:
    """Raises where a score depends on the interaction's own columns, so that users have no vector by themselves."""
    if recommender.encoder.context and context_width(recommender.model):
        raise ValueError(
            f"The {what} reads columns of the interaction itself (Schema(context=...)), so that a user alone has no "
            "vector and no list of items. Train it without them, or score rows that have them with jaxrec.predict."
        )


def order_of(seen: Interactions) -> Link:
    """The link of scores that order items and predict none of the targets that these may have."""
    return "identity" if seen.value is None else "rank"
