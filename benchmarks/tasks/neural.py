"""T4 two towers on content, T3 NeuMF, T11 a causal transformer: where the time goes into matrix products."""

import functools
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import data, losses, models, optim, train
from tasks.common import BATCH, DIM, LARGE_SIZE

_CONTENT, _HIDDEN, _RATE = 300, 256, 1e-3


def towers(full: bool) -> list[dict[str, Any]]:
    """Two towers 300-256-64 over content, softmax among the 4,096 positives of a batch, Adam."""
    rows, repeats = [], 5 if full else 3
    for users, items in [(6040, 3706)] + [LARGE_SIZE[:2]] * full:
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

    return _runs(model, features, "in_batch_softmax", stack, pairs.shape[1], freeze="*/embedding")


def _runs(
    model: Any, features: data.Features, loss: str, stack: Callable[[], data.Batch], units: int, *, freeze: Any = ()
) -> harness.Run:
    """Steps of Adam over stacks of batches."""
    optimizer = optim.row_sparse(optax.adam(_RATE))
    example = data.Batch(*(None if values is None else values[0] for values in stack()))
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    state = train.init_state(model, params, optimizer, example, features, key=key, freeze=freeze)
    epoch = jax.jit(
        functools.partial(train.train_epoch, model=model, loss=losses.on_batch(loss), optimizer=optimizer),
        donate_argnums=(0,),
    )
    box = [state]

    def run() -> float:
        box[0], _ = epoch(box[0], stack(), features)
        jax.block_until_ready(box[0].params)
        return units

    return run


def _torch_towers(content: list[np.ndarray], pairs: np.ndarray, *, compiled: bool) -> harness.Run:
    import torch

    torch.set_num_threads(harness.THREADS)
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


def neumf(full: bool) -> list[dict[str, Any]]:
    """NeuMF with four sampled negatives, sigmoid cross-entropy, Adam; 1,024 positives in a batch.

    On both sides the users' half of the first layer is multiplied once per positive and not once per pair. Rival:
    embeddings and layers of torch, Adam over whole tables in one kernel, which is faster than by rows where tables are
    small; with a million users by rows too, in torch's SparseAdam (which is not compiled).
    """
    rows, steps = [], 64
    paper, large, small, million = (8, 32, (32, 16, 8)), (64, 128, (128, 64)), (6040, 3706), LARGE_SIZE[:2]
    cases = [("the paper's size", paper, small), ("large", large, small)]
    for name, sizes, (users, items) in cases + [("the paper's size", paper, million)] * full:
        dim, mlp_dim, hidden = sizes
        theirs = functools.partial(_torch_neumf, users, items, steps, *sizes)
        systems = {
            "jaxrec": functools.partial(_jaxrec_neumf, users, items, steps, *sizes),
            "torch": theirs,
            "torch compiled": functools.partial(theirs, compiled=True),
        }
        if users > 100_000:
            systems["torch sparse"] = functools.partial(theirs, sparse=True)
        widths = (2 * mlp_dim, *hidden)
        flops = 6 * sum(a * b for a, b in zip(widths, (*hidden, 1), strict=True))
        flops -= 6 * mlp_dim * hidden[0] * _NEGATIVES / (1 + _NEGATIVES)
        case = f"{name}: {dim} and {'-'.join(map(str, widths))}, {users} x {items}"
        repeats = 5 if full else 3
        rows += harness.measure("T3", case, systems, unit="pairs", repeats=repeats, bound={"flops": flops})
    return rows


_POSITIVES, _NEGATIVES = 1024, 4


def _jaxrec_neumf(users: int, items: int, steps: int, dim: int, mlp_dim: int, hidden: Any) -> harness.Run:
    model = models.NeuMF(user_rows=users + 1, item_rows=items + 1, dim=dim, mlp_dim=mlp_dim, hidden=hidden)
    rows = [jnp.arange(num + 1, dtype=jnp.int32) for num in (users, items)]
    rng, shape = np.random.default_rng(0), (steps, _POSITIVES)

    def stack() -> data.Batch:
        return data.Batch(
            user=rng.integers(1, users + 1, shape, dtype=np.int32),
            item=rng.integers(1, items + 1, (*shape, 1 + _NEGATIVES), dtype=np.int32),
            weight=np.ones(shape, np.float32),
        )

    pairs = steps * _POSITIVES * (1 + _NEGATIVES)
    return _runs(model, data.Features(*rows), "sigmoid_cross_entropy", stack, pairs)


def _torch_neumf(
    users: int,
    items: int,
    steps: int,
    dim: int,
    mlp_dim: int,
    hidden: Any,
    *,
    compiled: bool = False,
    sparse: bool = False,
) -> harness.Run:
    import torch
    from torch import nn

    torch.set_num_threads(harness.THREADS)
    sides = ((num + 1, width) for num in (users, items) for width in (dim, mlp_dim))
    tables = nn.ModuleList(nn.Embedding(*side, sparse=sparse) for side in sides)
    of_user, of_item = nn.Linear(mlp_dim, hidden[0], bias=False), nn.Linear(mlp_dim, hidden[0])
    pairs = zip(hidden, hidden[1:], strict=False)
    perceptron = nn.Sequential(nn.ReLU(), *(layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())))
    head = nn.Linear(dim + hidden[-1], 1)
    by_rows = list(tables.parameters())
    whole = [weight for part in (of_user, of_item, perceptron, head) for weight in part.parameters()]
    if sparse:
        optimisers = [torch.optim.SparseAdam(by_rows, lr=_RATE), torch.optim.Adam(whole, lr=_RATE, fused=True)]
    else:
        optimisers = [torch.optim.Adam(by_rows + whole, lr=_RATE, fused=True)]
    target = torch.zeros(_POSITIVES, 1 + _NEGATIVES)
    target[:, 0] = 1.0

    def loss(user: Any, item: Any) -> Any:
        gmf_user, mlp_user, gmf_item, mlp_item = (
            table(index) for table, index in zip(tables, (user, user, item, item), strict=True)
        )
        deep = perceptron(of_user(mlp_user)[:, None] + of_item(mlp_item))
        score = head(torch.cat([gmf_user[:, None] * gmf_item, deep], 2))[:, :, 0]
        return nn.functional.binary_cross_entropy_with_logits(score, target)

    objective = torch.compile(loss) if compiled else loss

    def run() -> float:
        for _ in range(steps):
            user = torch.randint(1, users + 1, (_POSITIVES,))
            item = torch.randint(1, items + 1, target.shape)
            for optimiser in optimisers:
                optimiser.zero_grad()
            objective(user, item).backward()
            for optimiser in optimisers:
                optimiser.step()
        return steps * target.numel()

    return run


def transformer(full: bool) -> list[dict[str, Any]]:
    """A causal transformer over histories, 12 million parameters, every position a target, 256 shared negatives.

    Both sides: pre-norm blocks, learned positions, GELU, one product for query, key and value, softmax over the next
    item and the negatives, Adam.
    """
    items, dim, layers, heads, length, sequences, steps = 20_000, 256, 8, 4, 64, 32, 4
    given = items, dim, layers, heads, length, sequences, steps
    systems = {
        "jaxrec": functools.partial(_jaxrec_transformer, *given),
        "torch": functools.partial(_torch_transformer, *given, compiled=False),
        "torch compiled": functools.partial(_torch_transformer, *given, compiled=True),
    }
    flops = 6 * layers * 12 * dim**2 + 3 * layers * 4 * length * dim + 6 * _SAMPLED * dim
    case = f"{layers} blocks of {dim}, length {length}, {items:,} items"
    repeats = 5 if full else 3
    return harness.measure("T11", case, systems, unit="tokens", repeats=repeats, bound={"flops": flops})


_SAMPLED = 256


def _jaxrec_transformer(
    items: int, dim: int, layers: int, heads: int, length: int, sequences: int, steps: int
) -> harness.Run:
    model = models.SequenceTransformer(
        item_rows=items + 1, dim=dim, layers=layers, heads=heads, history=length, dropout=0.0
    )
    features = data.Features(jnp.zeros(2, jnp.int32), jnp.arange(items + 1, dtype=jnp.int32))
    rng, examples = np.random.default_rng(0), sequences * (length + 1)

    def stack() -> data.Batch:
        walk = rng.integers(1, items + 1, (steps, sequences, length + 1), dtype=np.int32)
        return data.Batch(
            user=np.ones((steps, sequences), np.int32),
            history=walk[:, :, :-1],
            item=walk.reshape(steps, examples, 1),
            shared_negatives=rng.integers(1, items + 1, (steps, _SAMPLED), dtype=np.int32),
            weight=np.ones((steps, examples), np.float32),
        )

    return _runs(model, features, "sampled_softmax", stack, steps * sequences * length)


def _torch_transformer(
    items: int, dim: int, layers: int, heads: int, length: int, sequences: int, steps: int, *, compiled: bool
) -> harness.Run:
    import torch
    from torch import nn

    torch.set_num_threads(harness.THREADS)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
            self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

        def forward(self, x: Any) -> Any:
            query, key, value = (
                part.reshape(sequences, length, heads, -1).transpose(1, 2)
                for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
            )
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
            return x + self.down(nn.functional.gelu(self.up(self.norms[1](x)), approximate="tanh"))

    table, position = nn.Embedding(items + 1, dim), nn.Parameter(dim**-0.5 * torch.randn(length, dim))
    nn.init.normal_(table.weight, std=dim**-0.5)
    blocks, norm = nn.ModuleList(Block() for _ in range(layers)), nn.LayerNorm(dim)
    parameters = [*table.parameters(), position, *blocks.parameters(), *norm.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=_RATE, fused=True)

    def loss(history: Any, following: Any, negatives: Any) -> Any:
        x = dim**0.5 * table(history) + position
        for block in blocks:
            x = block(x)
        x = norm(x)
        own = (x * table(following)).sum(-1, keepdim=True)
        shared = (x @ table(negatives).T).masked_fill(negatives == following[..., None], -torch.inf)
        scores = torch.cat([own, shared], -1).reshape(-1, 1 + _SAMPLED)
        return nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))

    objective = torch.compile(loss) if compiled else loss

    def run() -> float:
        for _ in range(steps):
            walk = torch.randint(1, items + 1, (sequences, length + 1))
            optimiser.zero_grad()
            objective(walk[:, :-1], walk[:, 1:], torch.randint(1, items + 1, (_SAMPLED,))).backward()
            optimiser.step()
        return steps * sequences * length

    return run
