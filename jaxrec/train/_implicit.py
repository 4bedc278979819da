"""What the methods that are counted or solved for ask of the data."""

from jaxrec.data import Dataset


def need_implicit(train: Dataset) -> None:
    """Raises unless the data is implicit feedback of users and items."""
    if train.target is not None or train.user is None or train.item is None:
        raise ValueError(
            "Expected implicit feedback of users and items. Leave the target out of the schema and name both columns; "
            "for ratings use fit with MatrixFactorization."
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
