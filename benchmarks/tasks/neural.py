"""T4 two towers on content, T3 NeuMF, T11 a causal transformer: where the time goes into matrix products."""

import functools
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import data, losses, models, optim, train
from tasks.common import BATCH, DIM

_CONTENT, _HIDDEN, _RATE = 300, 256, 1e-3


def towers(full: bool) -> list[dict[str, Any]]:
    """Two towers 300-256-64 over content, softmax among the 4,096 positives of a batch, Adam.

    The last system scores only the items that differ: a popular item is in a batch many times.
    """
    rows, repeats = [], 5 if full else 3
    for users, items in [(6040, 3706)] + [(1_000_000, 200_000)] * full:
        rng = np.random.default_rng(0)
        content = [rng.normal(size=(num + 1, _CONTENT)).astype(np.float32) for num in (users, items)]
        share = 1.0 / np.arange(1, items + 1) ** 0.8
        steps = 16
        pairs = np.stack(
            [rng.integers(1, users + 1, steps * BATCH), 1 + rng.choice(items, steps * BATCH, p=share / share.sum())]
        ).astype(np.int32)
        systems = {
            "jaxrec": functools.partial(_jaxrec_towers, content, pairs),
            "torch": functools.partial(_torch_towers, content, pairs, compiled=False),
            "torch compiled": functools.partial(_torch_towers, content, pairs, compiled=True),
        }
        tower = 2 * (_CONTENT * _HIDDEN + _HIDDEN * DIM)
        # Forward, and twice that backward; the first layer's input needs no gradient.
        flops = 2 * (3 * tower - 2 * _CONTENT * _HIDDEN) + 3 * 2 * BATCH * DIM
        case = f"towers {_CONTENT}-{_HIDDEN}-{DIM}, batch softmax {BATCH}, {users} x {items}"
        rows += harness.measure("T4", case, systems, unit="examples", repeats=repeats, bound={"flops": flops})
    return rows


def _jaxrec_towers(content: list[np.ndarray], pairs: np.ndarray) -> harness.Run:
    users, items = (len(side) for side in content)
    model = models.TwoTower(
        user_rows=1, item_rows=1, dim=DIM, hidden=(_HIDDEN,), user_dense=_CONTENT, item_dense=_CONTENT, id_dropout=0.0
    )
    features = data.Features(
        user_row=jnp.zeros(users, jnp.int32),
        item_row=jnp.zeros(items, jnp.int32),
        user_dense=jnp.asarray(content[0]),
        item_dense=jnp.asarray(content[1]),
    )
    optimizer, loss = optim.row_sparse(optax.adam(_RATE)), losses.on_batch("in_batch_softmax")
    rng = np.random.default_rng(0)

    def stack() -> data.Batch:
        order = rng.permutation(pairs.shape[1])
        user, item = pairs[:, order].reshape(2, -1, BATCH)
        return data.Batch(
            user=user,
            item=np.zeros((*user.shape, 0), np.int32),
            shared_negatives=item,
            weight=np.ones(user.shape, np.float32),
        )

    example = data.Batch(*(None if values is None else values[0] for values in stack()))
    params = model.init(jax.random.key(0))
    state = train.init_state(model, params, optimizer, example, features, key=jax.random.key(1), freeze="*/embedding")
    epoch = jax.jit(
        functools.partial(train.train_epoch, model=model, loss=loss, optimizer=optimizer), donate_argnums=(0,)
    )
    box = [state]

    def run() -> float:
        box[0], _ = epoch(box[0], stack(), features)
        jax.block_until_ready(box[0].params)
        return pairs.shape[1]

    return run


def _torch_towers(content: list[np.ndarray], pairs: np.ndarray, *, compiled: bool) -> harness.Run:
    import torch

    torch.set_num_threads(2)
    user_content, item_content = (torch.from_numpy(side) for side in content)
    users, items = torch.from_numpy(pairs.astype(np.int64))

    def tower() -> Any:
        return torch.nn.Sequential(
            torch.nn.Linear(_CONTENT, _HIDDEN), torch.nn.ReLU(), torch.nn.Linear(_HIDDEN, DIM, bias=False)
        )

    both = torch.nn.ModuleList([tower(), tower()])
    optimiser = torch.optim.Adam(both.parameters(), lr=_RATE, fused=True)
    own = torch.eye(BATCH, dtype=torch.bool)

    def loss(user: Any, item: Any) -> Any:
        scores = both[0](user_content[user]) @ both[1](item_content[item]).T
        accidental = (item[:, None] == item[None, :]) & ~own
        scores = scores.masked_fill(accidental, -torch.inf)
        return torch.nn.functional.cross_entropy(scores, torch.arange(BATCH))

    objective = torch.compile(loss) if compiled else loss

    def run() -> float:
        order = torch.randperm(len(users))
        for start in range(0, len(order), BATCH):
            at = order[start : start + BATCH]
            optimiser.zero_grad()
            objective(users[at], items[at]).backward()
            optimiser.step()
        return len(users)

    return run
