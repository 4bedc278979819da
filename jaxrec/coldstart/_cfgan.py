"""A generator of users' preferences that plays against a discriminator of real ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int32, Key

from jaxrec import optim
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, Params
from jaxrec.data import Dataset, Negatives
from jaxrec.models import VariationalAutoencoder, _base
from jaxrec.models._base import Over
from jaxrec.models._content import init_mlp, mlp
from jaxrec.train._adversarial import Optimizers, play
from jaxrec.train._implicit import need_plain
from jaxrec.train._judge import Metric

# One object for all calls, so that nothing is compiled twice.
_GENERATOR = optax.adamw(1e-3, b1=0.5, weight_decay=1e-2)
_DISCRIMINATOR = optax.adamw(3e-3, b1=0.5, weight_decay=1e-2)
_SILENT = -20.0  # logarithm of the variance of a code without noise
_LOUD = 0.5  # of first layers: whatever the length of a history, tanh gets numbers of about this size
_FLAT = 0.03  # of the discriminator at first: of unit size it would be punished for its slope alone, for many steps


@dataclasses.dataclass(frozen=True)
class Preferences(Over):
    r"""The game: an autoencoder of histories, and who tells the preferences that it makes up from real ones.

    Of a user who touched :math:`P` and not the :math:`N` drawn, the discriminator is shown the real preferences, 1 on
    :math:`P` and 0 on :math:`N`, or the generator's :math:`\hat y` on both, and :math:`P` itself:

    .. math:: D(y \mid P) = \mathrm{MLP}\bigl(\tanh(b + |P|^{-1/2}
        \textstyle\sum_{j \in P \cup N} y_j a_j + |P|^{-1/2} \sum_{j \in P} c_j)\bigr)

    Its first layer is looked up, so that the products with vectors as long as the catalogue, of which all but
    :math:`P \cup N` is masked, are never made. Its loss has ``smoothness`` times
    :math:`|P \cup N| \lVert \partial D / \partial y \rVert^2` at real preferences, the square of what it could change
    its mind by if every number changed by one: without that it soon knows everything, and tells the generator nothing.
    """

    base: VariationalAutoencoder
    discriminator: tuple[int, ...]
    zero_weight: float
    smoothness: float

    @property
    def players(self) -> dict[str, tuple[str, ...]]:
        return {"discriminator": ("discriminator/*",), "generator": ("item/*", "autoencoder/*")}

    def init(self, key: Key[jax.Array, ""]) -> Params:
        params = self.base.init(key)
        table = _base.embedding(jax.random.fold_in(key, 2), self.base.item_rows, self.base.dim, _LOUD)
        params["item"]["encoder"]["embedding"] = table
        noise = params["autoencoder"]["log_variance"]
        params["autoencoder"]["log_variance"] = {
            "kernel": jnp.zeros_like(noise["kernel"]),
            "bias": jnp.full_like(noise["bias"], _SILENT),
        }
        first, *rest = self.discriminator
        key_values, key_given, key_mlp = jax.random.split(jax.random.fold_in(key, 1), 3)
        params["discriminator"] = {
            "values": _base.embedding(key_values, self.base.item_rows, first, _FLAT),
            "given": _base.embedding(key_given, self.base.item_rows, first, _LOUD),
            "bias": jnp.zeros((first,), jnp.float32),
            "mlp": init_mlp(key_mlp, (first, *rest, 1), 1.0),
        }
        return params

    def lookups(self, batch: Batch, features: Features) -> dict[str, _base.Lookup]:
        return self.base.lookups(batch, features)

    def score(self, params: Params, gathered: Any, batch: Batch, features: Features, *, key: Any = None) -> Any:
        return self.base.score(params, gathered, batch, features, key=key)

    apply = _base.apply

    def player_loss(self, player: str, params: Params, batch: Batch, features: Features, *, key: Any) -> jax.Array:
        """Of a batch of sequences with own negatives: a user's stretch of items is ``P``, its negatives are ``N``."""
        touched, drawn = _touched_and_drawn(batch)
        items = jnp.concatenate([touched, drawn], axis=1)
        made_up = jax.nn.sigmoid(self.base.apply(params, Batch(history=touched, item=items), features, key=key))
        somebody = (touched > 0).any(axis=1).astype(jnp.float32)

        def mean(of_users: jax.Array) -> jax.Array:
            return (somebody * of_users).sum() / jnp.maximum(somebody.sum(), 1.0)

        fake = self._opinion(params["discriminator"], touched, drawn, made_up, features)
        if player == "discriminator":
            real = jnp.concatenate([jnp.ones(touched.shape), jnp.zeros(drawn.shape)], axis=1)

            def of_real(values: jax.Array) -> tuple[jax.Array, jax.Array]:
                logits = self._opinion(params["discriminator"], touched, drawn, values, features)
                return logits.sum(), logits

            slope, true = jax.grad(of_real, has_aux=True)(real)
            count = (items > 0).sum(axis=1).astype(jnp.float32)
            steep = count * jnp.square(slope).sum(axis=1)
            return mean(jax.nn.softplus(-true) + jax.nn.softplus(fake) + self.smoothness * steep)
        wanted = (drawn > 0).astype(jnp.float32)
        square = (wanted * jnp.square(made_up[:, touched.shape[1] :])).sum(axis=1)
        return mean(jax.nn.softplus(-fake) + self.zero_weight * square / jnp.maximum(wanted.sum(axis=1), 1.0))

    def _opinion(
        self,
        params: Params,
        touched: Int32[jax.Array, "users touched"],
        drawn: Int32[jax.Array, "users drawn"],
        values: Float[jax.Array, "users columns"],
        features: Features,
    ) -> Float[jax.Array, " users"]:
        """The logit that these values of a user are real."""
        items = jnp.concatenate([touched, drawn], axis=1)
        known = (items > 0).astype(jnp.float32)
        rows = _base.take(features.item_row, items)
        given = rows[:, : touched.shape[1]]
        length = known[:, : touched.shape[1]].sum(axis=1, keepdims=True)
        pooled = jnp.einsum("un,und->ud", known * values, _base.take(params["values"], rows))
        pooled += jnp.einsum("un,und->ud", known[:, : touched.shape[1]], _base.take(params["given"], given))
        hidden = jnp.tanh(params["bias"][None, :] + pooled * jax.lax.rsqrt(jnp.maximum(length, 1.0)))
        return mlp(params["mlp"], hidden, jnp.tanh)[:, 0]


def _touched_and_drawn(
    batch: Batch,
) -> tuple[Int32[jax.Array, "users touched"], Int32[jax.Array, "users drawn"]]:
    """A row for each stretch of a batch of sequences; 0 is padding, whose draws go, as do draws of what was touched."""
    items, users = _base.item_fields(batch)["item"], _base.history_of(batch).shape[0]
    touched = items[:, 0].reshape(users, -1)
    drawn = jnp.where(items[:, :1] > 0, items[:, 1:], 0).reshape(users, -1)
    return touched, jnp.where(_base.among(drawn, touched), 0, drawn)


def cfgan(
    train: Dataset,
    *,
    dim: int = 200,
    latent: int = 64,
    history: int = 200,
    discriminator: tuple[int, ...] = (128,),
    zero_weight: float = 0.5,
    smoothness: float = 0.3,
    dropout: float = 0.5,
    negatives: int = 2,
    generator_optimizer: optax.GradientTransformation | None = None,
    discriminator_optimizer: optax.GradientTransformation | None = None,
    epochs: int = 100,
    batch_size: int = 32,
    validation: Dataset | None = None,
    metric: Metric | None = None,
    patience: int | None = 5,
    seed: int = 0,
) -> Recommender:
    """Learns users' preferences over the whole catalogue in an adversarial game (CFGAN).

    The generator makes a number in (0, 1) for every item out of the items that a user touched; the discriminator, who
    is told these items too, says whether numbers are real (1 for what was touched, 0 for what was not) or made up. They
    are shown for what the user touched and for a few other items, drawn anew in every epoch. Users are read from their
    history alone, so new ones are served without training. Those without any are served as an empty history, which
    training hardly meets: rank for them by popularity (``coldstart.mix``).

    Args:
      train: implicit feedback without weights.
      dim: width of the generator's first and last hidden layer.
      latent: width of the layer between.
      history: items of a user that are read at once; whoever has more counts as several users, and is served by the
        latest. What such a user touched in another stretch may be drawn as if it were untouched: somebody may have
        touched everything, so that drawing until nothing is theirs would not end. Choose it long enough for nearly all.
      discriminator: widths of the hidden layers, at least one.
      zero_weight: weight of the mean square of the generator's numbers for items drawn (zero-reconstruction), >= 0.
      smoothness: weight of the penalty on the discriminator's slope, >= 0; without it the generator learns less
        (docs/design.md).
      dropout: probability with which an item is kept from the generator while training, in [0, 1).
      negatives: items drawn for each that a user touched, at least 1; of those that the user touched too there are
        fewer.
      generator_optimizer: by default AdamW with a rate of 0.001, decay 0.01 and momentum 0.5, as is usual in such
        games.
      discriminator_optimizer: likewise, with a rate of 0.003.
      epochs: passes over the users, at most.
      batch_size: users per step, counted as ``history + 1`` interactions each.
      validation: as for ``fit``.
      metric: as for ``fit``.
      patience: as for ``fit``.
      seed: of the parameters, the order of users, and the items drawn.

    Returns:
      A recommender of a ``VariationalAutoencoder`` without noise, which is the generator; its ``history`` has both
      players' losses.

    Raises:
      ValueError: an option is out of range, or the data has targets, weights, or no users or items.
      Diverged: a loss or gradient is not finite.

    References:
      Chae, Kang, Kim and Lee, CFGAN: a generic collaborative filtering framework based on generative adversarial
      networks, CIKM 2018 (the user-based form, with zero-reconstruction and partial masking by the same draws, so many
      for each item of a user instead of a share of the catalogue; the generator minimises -log D instead of
      log(1 - D); one step of each player in turn; first layers scaled by the length of the history; dropout and the
      penalty are additions). The penalty: Mescheder, Geiger and Nowozin, Which training methods for GANs do actually
      converge?, ICML 2018 (R1, here times the number of items).
    """
    expect(train, Dataset, "train")
    need_plain(train)
    counts = {"negatives": negatives, "batch_size": batch_size, "dim": dim, "latent": latent, "history": history}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"Expected {name} >= 1, got {value}.")
    discriminator = tuple(discriminator)
    if not discriminator or min(discriminator) < 1:
        raise ValueError(f"Expected one or more widths >= 1 for the discriminator, got {discriminator}.")
    for name, value in (("zero_weight", zero_weight), ("smoothness", smoothness)):
        if not value >= 0:
            raise ValueError(f"Expected {name} >= 0, got {value}.")
    generator = VariationalAutoencoder.for_data(
        train, dim=dim, latent=latent, history=history, dropout=dropout, beta=0.0
    )
    game = Preferences(generator, discriminator, zero_weight, smoothness)
    optimizers = Optimizers(
        discriminator=optim.row_sparse(discriminator_optimizer or _DISCRIMINATOR),
        generator=optim.row_sparse(generator_optimizer or _GENERATOR),
    )

    def served(found: Recommender) -> Recommender:
        params = {name: part for name, part in found.params.items() if name != "discriminator"}
        return found.replace(model=generator, params=_base.with_unknown_rows(generator, params, train.features))

    return play(
        game,
        train,
        game.init(jax.random.key(seed)),
        optimizers,
        epochs=epochs,
        batch_size=batch_size * (history + 1),
        negatives=Negatives(num=negatives),
        history=history,
        histories="sequences",
        validation=validation,
        metric=metric,
        patience=patience,
        seed=seed,
        served=served,
    )
