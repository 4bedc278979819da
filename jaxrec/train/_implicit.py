"""What the methods that are counted or solved for ask of the data."""

from jaxrec.data import Dataset


def need_implicit(train: Dataset) -> None:
    """Raises unless the data is implicit feedback of users and items."""
    if train.target is not None or train.user is None or train.item is None:
        raise ValueError(
            "Expected implicit feedback of users and items. Leave the target out of the schema and name both columns; "
            "for ratings use fit with MatrixFactorization. Ratings become likes by keeping the high ones: "
            "frame[frame['rating'] >= 4] with dataclasses.replace(schema, target=None)."
        )
    if not len(train):
        raise ValueError("The training part is empty. Expected at least one interaction.")
    for side, index in (("user", train.user), ("item", train.item)):
        unknown = int((index == 0).sum())
        if unknown:
            raise ValueError(
                f"{unknown} of {len(train)} rows of the training part are of unknown {side}s, of which nothing can be "
                "learned. Encode the training part with data.encode."
            )


def need_plain(train: Dataset) -> None:
    """Raises unless it is, without weights."""
    need_implicit(train)
    if train.weight is not None:
        raise ValueError(
            "Expected interactions without weights: a pair of user and item counts once. Leave the weight out of the "
            "schema, or say dataclasses.replace(train, weight=None)."
        )


def history_length(train: Dataset, history: int | None) -> int:
    """Histories are read whole unless a shorter one is asked for."""
    if history is not None and history < 1:
        raise ValueError(f"Expected history >= 1, or None for the longest in training, got {history}.")
    longest = max(int(train.interactions.user_count.max(initial=0)), 1)
    return longest if history is None else history
