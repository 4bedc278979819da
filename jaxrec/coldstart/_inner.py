"""The inner loop of meta-learning, pure functions: a few gradient steps of some parameters on one task's support."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrec import _tree, losses
from jaxrec._expect import one_of
from jaxrec._types import Batch, Features, Link, Params
from jaxrec.coldstart._mirrored import mirrored
from jaxrec.data import Dataset
from jaxrec.data._sides import Side
from jaxrec.models import Lookup, Model, Scored
from jaxrec.models._base import Gathered, Over, gather, scored
from jaxrec.models._personalised import check_personal
from jaxrec.train._choices import chosen_loss

Method = Literal["maml", "first_order", "reptile"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerLoop:
    r"""How a user's (or item's) own parameters come from a few interactions: gradient descent from shared ones.

    .. math:: \phi_0 = \theta, \quad \phi_{t+1} = \phi_t
        - \eta \nabla_\phi \tfrac{1}{n} \textstyle\sum_{i=1}^{m} w_i \ell(\phi_t, i)

    Only the personal part :math:`\theta` of the parameters moves; all others stay. :math:`\ell` is the loss of one of
    the :math:`m` interactions in the support, without the model's penalty, and :math:`n` is ``support``, the most there
    can be: one interaction is a weaker reason to move than ten. Without any :math:`\phi = \theta` exactly.

    Args:
      personal: patterns of the parameters that become the user's own, none of them a table: ``"mlp/*"`` for the
        decision layers of ``NeuMF``, ``("user/bias", "user/mlp/*")`` for the user tower of ``TwoTower``.
      steps: of gradient descent, at least 1.
      rate: of gradient descent, positive.
      loss: name of a loss, of the outer loop too. By default ``"mse"`` (``"sigmoid_cross_entropy"`` for a model or
        recommender with a sigmoid link) where there is a target; else ``"sampled_softmax"`` (likewise).
      negatives: drawn for each interaction, uniformly from trained items; none where the target says what is negative.
      support: most interactions that a user is adapted to, the latest where there are more.
      side: ``"item"``: the parameters become an item's own, such as ``("item/bias", "item/mlp/*")`` of ``TwoTower``,
        adapted to the users who touched it, and negatives are other users.

    References:
      Lee et al., MeLU: meta-learned user preference estimator for cold-start recommendation, KDD 2019 (decision layers
      are personal, embeddings are not; there a step is by the mean over the support, however small). For items: Pan et
      al., Warm up cold-start advertisements: improving CTR predictions via learning to learn ID embeddings, SIGIR 2019
      (an item is a task; there its embedding is what a gradient step moves).
    """

    personal: _tree.Patterns
    steps: int = 1
    rate: float = 0.1
    loss: str | None = None
    negatives: int = 16
    support: int = 10
    side: Side = "user"

    def __post_init__(self) -> None:
        personal = (self.personal,) if isinstance(self.personal, str) else tuple(self.personal)
        object.__setattr__(self, "personal", personal)
        if not personal:
            raise ValueError("Expected patterns of the parameters that are personal, got none: nothing would adapt.")
        if not self.rate > 0:
            raise ValueError(f"Expected rate > 0, got {self.rate}.")
        for name, value in (("steps", self.steps), ("negatives", self.negatives), ("support", self.support)):
            if value < 1:
                raise ValueError(f"Expected {name} >= 1, got {value}.")
        one_of(self.side, ("user", "item"), "side")
        if self.loss is not None:
            losses.on_batch(self.loss)
        if self.loss in ("in_batch_softmax", "softmax"):
            raise ValueError(
                f"A task's support has neither other tasks nor the catalogue to take negatives from, as {self.loss!r} "
                "does. Use loss='sampled_softmax', whose negatives are drawn."
            )

    def adapt(self, model: Model, params: Params, support: Batch, features: Features) -> Params:
        """Parameters of one user or item.

        Args:
          model: any whose ``personal`` part is dense.
          params: the whole tree.
          support: the user's interactions as a batch, each with its negatives; weight 0 for padding. An item's batch
            is mirrored: ``user`` has the item, ``item`` the users, of whom the first touched it.
          features: arrays by entity.

        Returns:
          The tree with the personal leaves moved.

        Raises:
          ValueError: ``loss`` is None, a pattern matches nothing or a table.
        """
        check_personal(model, _tree.flatten(params), self.personal)
        model = mirrored(model, self.side)
        gathered = gather(params, model.lookups(support, features))
        shared, own = _tree.split(params, self.personal)
        return _tree.merge(shared, self.descend(model, shared, own, gathered, support, features))

    def descend(
        self,
        model: Model,
        shared: Params,
        own: Params,
        gathered: Gathered,
        support: Batch,
        features: Features,
        *,
        key: Any = None,
        detached: bool = False,
    ) -> Params:
        """``adapt`` on split parameters and gathered rows; ``detached``: steps are constants to an outer gradient."""

        def step(own: Params, _: None) -> tuple[Params, None]:
            grads = self.gradient(model, shared, own, gathered, support, features, most=self.support, key=key)
            grads = jax.lax.stop_gradient(grads) if detached else grads
            return self.moved(own, grads), None

        return jax.lax.scan(step, own, None, length=self.steps)[0]

    def gradient(
        self,
        model: Model,
        shared: Params,
        own: Params,
        gathered: Gathered,
        batch: Batch,
        features: Features,
        *,
        most: float,
        key: Any = None,
    ) -> Params:
        """Of the sum of losses over ``most`` with respect to the personal parameters."""
        if self.loss is None:
            raise ValueError(
                "The loss is left open, and there is no data here to choose by. Name it: InnerLoop(loss='mse')."
            )
        loss = losses.on_batch(self.loss)

        def objective(own: Params) -> jax.Array:
            output = model.score(_tree.merge(shared, own), gathered, batch, features, key=key)
            return loss(scored(output).scores, batch) * share

        assert batch.weight is not None
        share = jnp.asarray(batch.weight).sum() / most  # losses are means
        return jax.grad(objective)(own)

    def moved(self, own: Params, grads: Params) -> Params:
        """One step."""
        return jax.tree.map(lambda leaf, grad: leaf - self.rate * grad, own, grads)

    def chosen(self, model: Model, data: Dataset) -> tuple["InnerLoop", Link]:
        """With a loss, and the negatives that it needs with this data; and the link that goes with it."""
        name = self.loss
        if name is None and data.target is None and getattr(model, "link", None) != "sigmoid":
            name = "sampled_softmax"
        name, _, link = chosen_loss(model, data, name)
        if name is None:
            name = "sigmoid_cross_entropy" if link == "sigmoid" else "mse"
        return dataclasses.replace(self, loss=name), link

    def drawn(self, data: Dataset) -> int:
        """Negatives of each row of this data."""
        return 0 if data.target is not None and self.loss in losses.POINTWISE else self.negatives


@dataclasses.dataclass(frozen=True)
class Tasks(Over):
    """The base model trained on tasks: its batch is tasks one after the other, ``support + query`` rows of each.

    The gradient of its loss with respect to the base's parameters is the meta-gradient.
    """

    inner: InnerLoop
    query: int
    method: Method

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        return self.base.lookups(batch, features)

    def apply(self, params: Params, batch: Batch, features: Features, *, key: Any = None) -> jax.Array:
        return scored(self.score(params, gather(params, self.lookups(batch, features)), batch, features)).scores

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "rows columns"] | Scored:
        rows = self.inner.support + self.query
        tasks = jax.tree.leaves(batch)[0].shape[0] // rows
        batch, gathered = jax.tree.map(lambda leaf: leaf.reshape(tasks, rows, *leaf.shape[1:]), (batch, gathered))
        keys = None if key is None else jax.random.split(key, tasks)
        shared, own = _tree.split(params, self.inner.personal)
        of_task = self._reptile if self.method == "reptile" else self._maml

        def each(batch: Batch, gathered: Gathered, key: Any) -> tuple[jax.Array, jax.Array]:
            found = of_task(shared, own, gathered, batch, features, key)
            return found.scores, found.penalty

        scores, penalty = jax.vmap(each)(batch, gathered, keys)
        return Scored(scores.reshape(tasks * rows, -1), penalty.mean())

    def _maml(
        self, shared: Params, own: Params, gathered: Gathered, batch: Batch, features: Features, key: Any
    ) -> Scored:
        most = self.inner.support
        known, asked = (
            jax.tree.map(lambda leaf, part=part: leaf[part], (batch, gathered))
            for part in (slice(most), slice(most, None))
        )
        own = self.inner.descend(
            self.base, shared, own, known[1], known[0], features, key=key, detached=self.method == "first_order"
        )
        output = scored(self.base.score(_tree.merge(shared, own), asked[1], asked[0], features, key=key))
        # Rows of the support are not asked for; they only keep the shape.
        return output._replace(scores=jnp.pad(output.scores, ((most, 0), (0, 0))))

    def _reptile(
        self, shared: Params, own: Params, gathered: Gathered, batch: Batch, features: Features, key: Any
    ) -> Scored:
        """Each step looks at rows of its own. All are scored as their step finds them, so that the loss's gradient is
        the mean of the gradients along the way: of the personal part, the way gone divided by rate and steps."""
        start, penalty, blocks = jax.lax.stop_gradient(own), jnp.zeros((), jnp.float32), []
        order = [np.arange(self.inner.support + self.query)[number :: self.inner.steps] for number in self._steps]
        now = start
        for part in order:
            rows, looked_up = jax.tree.map(lambda leaf, part=part: leaf[part], (batch, gathered))
            # The value where this step is, with the gradient of the initialisation.
            here = jax.tree.map(lambda now, own, start: now + (own - start), now, own, start)
            output = scored(self.base.score(_tree.merge(shared, here), looked_up, rows, features, key=key))
            blocks.append(output.scores)
            penalty = penalty + output.penalty / self.inner.steps
            grads = self.inner.gradient(self.base, shared, now, looked_up, rows, features, most=len(part), key=key)
            now = jax.lax.stop_gradient(self.inner.moved(now, grads))
        return Scored(jnp.concatenate(blocks)[np.argsort(np.concatenate(order))], penalty)

    @property
    def _steps(self) -> range:
        return range(self.inner.steps)


@dataclasses.dataclass(frozen=True)
class TaskLoss:
    """Mean over tasks of the mean over their query; for Reptile over all rows."""

    tasks: Tasks

    def __call__(self, scores: jax.Array, batch: Batch) -> jax.Array:
        inner = self.tasks.inner
        assert inner.loss is not None and batch.weight is not None
        if self.tasks.method != "reptile":
            weight = jnp.asarray(batch.weight).reshape(-1, inner.support + self.tasks.query)
            asked = weight.at[:, : inner.support].set(0.0)
            total = asked.sum(axis=1, keepdims=True)
            batch = batch._replace(weight=(asked / jnp.where(total > 0, total, 1.0)).reshape(-1))
        return losses.on_batch(inner.loss)(scores, batch)
