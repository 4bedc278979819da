"""Nearest neighbours of items, by the users they share or by content."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import _nearest
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec.data import Dataset, Encoder, Numeric
from jaxrec.data._features import modalities
from jaxrec.models import Neighbours
from jaxrec.train._implicit import history_length, need_plain


def fit_item_knn(
    train: Dataset,
    *,
    neighbours: int = 100,
    shrink: float = 10.0,
    similarity: _nearest.Similarity = "cosine",
    normalise: float = 0.0,
    history: int | None = None,
) -> Recommender:
    r"""Nearest neighbours of each item by the users in common.

    With :math:`n_i` the users who touched item :math:`i` and :math:`n_{ij}` those who touched both, the similarity is

    .. math:: c_{ij} = \frac{n_{ij}}{\sqrt{n_i n_j} + h} \quad \text{or} \quad
        c_{ij} = \frac{n_{ij}}{n_i + n_j - n_{ij} + h}

    for ``"cosine"`` and ``"jaccard"``, with :math:`h` ``shrink``: what few users say weighs less. An item is scored by
    its similarity to what the user touched, see ``models.Neighbours``. An item that was added since with interactions
    gets its neighbours from them; without any it scores 0. Time and memory go with the pairs of items that some user
    touched both.

    Args:
      train: implicit feedback. A pair counts once however often it occurs.
      neighbours: kept of each item: the most similar ones, of equal ones the one that the encoder numbers lower.
      shrink: :math:`h`, not negative.
      similarity: ``"cosine"`` or ``"jaccard"``.
      normalise: power of the sum of an item's kept similarities that its score is divided by.
      history: longest history that is read when scoring, by default the longest in training; of a longer one the
        latest.

    Returns:
      A recommender of a ``Neighbours``.

    Raises:
      ValueError: the data has targets or weights, no users or no items, or an option is out of range.

    References:
      Sarwar et al., Item-based collaborative filtering recommendation algorithms, WWW 2001; Deshpande and Karypis,
      Item-based top-N recommendation algorithms, ACM TOIS 22(1), 2004; the shrunk cosine as in Ferrari Dacrema et al.,
      Are we really making much progress?, RecSys 2019.
    """
    expect(train, Dataset, "train")
    need_plain(train)
    model = Neighbours(
        items=len(train.features.item_row),
        neighbours=_kept(train, neighbours),
        shrink=shrink,
        similarity=similarity,
        normalise=normalise,
        history=history_length(train, history),
    )
    return _counted(model, train)


def fit_content_knn(
    train: Dataset,
    *,
    neighbours: int = 100,
    normalise: float = 0.5,
    features: Iterable[str] | None = None,
    history: int | None = None,
) -> Recommender:
    r"""Nearest neighbours of each item by content: the strong, simple answer to cold items.

    Similarity is the cosine of content, of which only positive values count. Neighbours are trained items, those of a
    cold item too, and every item is scored by its similarity to what the user touched, see ``models.Neighbours``. Items
    that are added later get theirs. An item without content scores 0.

    Content is made of parts, each a row of unit length: numbers that follow one another in the schema together, every
    vector, every category and every set of labels. Labels weigh :math:`\ln((1 + n) / (1 + n_l)) + 1`, of :math:`n`
    trained items :math:`n_l` having label :math:`l`, and labels that the encoder does not know do not count. Several
    parts stand side by side in one row, again of unit length. Numbers are read as the encoder scales them; an item that
    lacks all of those that follow one another lacks the part, and one that lacks some has the middle of their scale.

    Args:
      train: implicit feedback; of the interactions nothing but the histories is read.
      neighbours: kept of each item: the most similar ones, of equal ones the one that the encoder numbers lower.
      normalise: power of the sum of an item's kept similarities that its score is divided by. 0 lets items lead that
        have many close neighbours, 1 those of whose neighbours the user touched a large share.
      features: names of the item features that make up the content, by default all.
      history: longest history that is read when scoring, by default the longest in training; of a longer one the
        latest.

    Returns:
      A recommender of a ``Neighbours``.

    Raises:
      ValueError: the data has targets or weights, no users or no items, there are no such features, or an option is out
        of range.

    References:
      Lops, de Gemmis and Semeraro, Content-based recommender systems: state of the art and trends, Recommender Systems
      Handbook, 2011 (nearest neighbours by TF-IDF and cosine).
    """
    expect(train, Dataset, "train")
    need_plain(train)
    dense, modality, codes = _parts(train.encoder, features)
    model = Neighbours(
        items=len(train.features.item_row),
        neighbours=_kept(train, neighbours),
        normalise=normalise,
        dense=dense,
        modalities=modality,
        codes=codes,
        history=history_length(train, history),
    )
    return _counted(model, train)


def _kept(train: Dataset, neighbours: int) -> int:
    """More than there are would only be padding."""
    return min(neighbours, max(int((train.features.item_row > 0).sum()), 1))


def _counted(model: Neighbours, train: Dataset) -> Recommender:
    items = np.arange(1, len(train.encoder.items) + 1)
    found = model.find(train.features, train.interactions, items)
    behind = model.items - 1 - len(items)
    params = jax.tree.map(lambda lists: jnp.pad(lists, ((1, behind), (0, 0))), found)
    return Recommender(model, params, train.encoder, train.interactions, len(train.interactions))


def _parts(
    encoder: Encoder, features: Iterable[str] | None
) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...], tuple[str, ...]]:
    """Columns of ``Features.item_dense``, of ``Features.item_present``, and names of ``Features.item_codes``."""
    known = [each.name for each in encoder.item_features]
    chosen = known if features is None else list(features)
    if isinstance(features, str) or not chosen or set(chosen) - set(known):
        raise ValueError(
            f"Expected names of item features ({', '.join(known) or 'the schema has none'}), got {features!r}. Name "
            "them in Schema(item_features=...) and give the frame of items to data.encode."
        )
    number_of = {each.name: at for at, group in enumerate(modalities(encoder.item_features)) for each in group}
    dense: list[tuple[int, int]] = []
    found: list[int] = []
    codes, first, before = [], 0, False
    for each in encoder.item_features:
        if each.is_code:
            codes += [each.name] * (each.name in chosen)
            continue
        last, number = first + each.width, isinstance(each.feature, Numeric)
        if each.name in chosen:
            joined = number and before and dense[-1][1] == first
            dense = [*dense[:-1], (dense[-1][0], last)] if joined else [*dense, (first, last)]
            found += [] if joined else [number_of[each.name]]
            before = number
        first = last
    return tuple(dense), tuple(found), tuple(codes)
