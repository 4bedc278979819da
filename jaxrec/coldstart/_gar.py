"""A generator of cold items' vectors that plays against the recommender."""

import jax
import optax

from jaxrec import optim
from jaxrec._recommender import Recommender
from jaxrec.coldstart._vectors import vectors_by_row
from jaxrec.data import Dataset, Negatives
from jaxrec.models import GAR
from jaxrec.train._adversarial import Optimizers, play
from jaxrec.train._judge import Metric

# One object for all calls, so that nothing is compiled twice.
_DEFAULT_OPTIMIZER = optax.adamw(1e-3, weight_decay=1e-2)


def gar(
    backbone: Recommender,
    train: Dataset,
    *,
    hidden: tuple[int, ...] = (200,),
    code_dim: int = 16,
    similarity: float = 0.5,
    negative_share: float = 0.8,
    generator_optimizer: optax.GradientTransformation | None = None,
    discriminator_optimizer: optax.GradientTransformation | None = None,
    epochs: int = 20,
    batch_size: int | None = 1024,
    negatives: int = 1,
    validation: Dataset | None = None,
    metric: Metric | None = None,
    patience: int | None = 5,
    seed: int = 0,
) -> Recommender:
    """Recommends items that nobody has touched by vectors that a generator makes of their content.

    In every step the recommender learns to score what users touched above other items and above what the generator
    makes of the same content, and the generator to be scored as high and to stay near the item's vector; see
    ``models.GAR``. The backbone's vectors do not move, a user's or item's score does.

    Args:
      backbone: a trained recommender that factorises, such as ``train.fit_als`` returns.
      train: what it was trained on, with item features.
      hidden: widths of the hidden layers of all perceptrons.
      code_dim: width of the embedding of a category or label.
      similarity: share of the generator's loss that keeps it near the items' vectors, in [0, 1].
      negative_share: share of the negatives, instead of the generated items, in what the recommender scores below the
        positives, in [0, 1].
      generator_optimizer: by default AdamW with a rate of 0.001 and decay 0.01.
      discriminator_optimizer: of the recommender; likewise.
      epochs: passes over the data, at most.
      batch_size: examples per step; None for all.
      negatives: of each example, at least 1.
      validation: as for ``fit``.
      metric: as for ``fit``.
      patience: as for ``fit``.
      seed: of the networks' parameters, the order of examples, and negatives.

    Returns:
      A recommender of a ``GAR``; its ``history`` has both players' losses.

    Raises:
      ValueError: there are no item features, an option is out of range, or the backbone does not factorise, does not
        know the same entities or was not trained on all of them.
      Diverged: a loss or gradient is not finite.

    References:
      Chen et al., Generative adversarial framework for cold-start item recommendation, SIGIR 2022.
    """
    tables = vectors_by_row(backbone, train)
    if negatives < 1:
        raise ValueError(f"Expected negatives >= 1, got {negatives}. The recommender is trained on comparisons.")
    model = GAR.for_data(
        train,
        dim=tables["user"].shape[1],
        hidden=hidden,
        code_dim=code_dim,
        similarity=similarity,
        negative_share=negative_share,
    )
    params = model.init(jax.random.key(seed))
    params["backbone"] = tables
    optimizers = Optimizers(
        discriminator=optim.row_sparse(discriminator_optimizer or _DEFAULT_OPTIMIZER),
        generator=optim.row_sparse(generator_optimizer or _DEFAULT_OPTIMIZER),
    )
    return play(
        model,
        train,
        params,
        optimizers,
        epochs=epochs,
        batch_size=batch_size,
        negatives=Negatives(num=negatives),
        validation=validation,
        metric=metric,
        patience=patience,
        seed=seed,
    )
