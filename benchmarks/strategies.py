"""Ways of transfer for the benchmark: each a function of a pair of domains, a seed and a setting, with its settings."""

import dataclasses
import functools
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grids
import harness
import optax
import pandas as pd
from domains import Pair

import jaxrec
from jaxrec import coldstart, data, models, optim, train, transfer
from jaxrec.train import Recommender

Setting = dict[str, Any]


class Fitted(NamedTuple):
    """A recommender, the seconds that training it took, and under which name of a stacked domain it knows the rows."""

    recommender: Recommender
    seconds: float
    stacked: str | None = None

    def named(self, rows: pd.DataFrame, pair: Pair) -> pd.DataFrame:
        if self.stacked is None:
            return rows
        stacked = transfer.stack({self.stacked: data.Frames(rows, None, None, data.Schema())}, side=own_side(pair))
        weight = self.recommender.encoder.schema.weight
        return stacked.interactions if weight is None else stacked.interactions.assign(**{weight: 1.0})


class Method(NamedTuple):
    fit: Callable[..., Fitted]
    settings: list[Setting]


def own_side(pair: Pair) -> Any:
    """Whose ids belong to one domain."""
    return "item" if pair.shared == "user" else "user"


_KEPT: dict[Any, tuple[Any, float]] = {}


def _once(key: tuple[Any, ...], make: Callable[[], Any]) -> tuple[Any, float]:
    """What was made for a pair before, with the seconds it took: methods share their parts."""
    if key not in _KEPT:
        start = time.perf_counter()
        made = make()
        _KEPT[key] = made, time.perf_counter() - start
    return _KEPT[key]


def forget() -> None:
    _KEPT.clear()


def _of(pair: Pair, what: str, seed: int, setting: Setting) -> tuple[Any, ...]:
    return pair.source, pair.target, pair.shots, what, seed, tuple(sorted(setting.items()))


def _encoded(pair: Pair, domain: str | None, weight: float | None = None) -> data.Dataset:
    """Of one domain, or of both stacked, with the features that users or items have of their own."""

    def make() -> data.Dataset:
        if domain is not None:
            frames = pair.domains[domain]
            schema = frames.schema
        else:
            weights = None if weight is None else {pair.source: weight, pair.target: 1.0}
            frames = transfer.stack(pair.domains, side=own_side(pair), weight=weights)
            own = pair.domains[pair.target].schema
            schema = dataclasses.replace(own, weight=frames.schema.weight)  # without the domain as a feature
        parts = data.Parts(frames.interactions, None, None)
        users = frames.users if schema.user_features else None
        return data.encode(parts, schema, users=users).train

    return _once((pair.source, pair.target, pair.shots, domain, weight), make)[0]


def _factorised(pair: Pair, domain: str | None, seed: int, setting: Setting) -> tuple[Recommender, float]:
    def make() -> Recommender:
        options = dict(setting)
        rows = _encoded(pair, domain, options.pop("weight", None))
        content = bool(rows.encoder.user_features)
        return train.fit_als(rows, epochs=10, seed=seed, content=content, **options)

    return _once(_of(pair, f"als {domain}", seed, setting), make)


def _timed(make: Callable[[], Recommender], stacked: str | None = None) -> Fitted:
    start = time.perf_counter()
    return Fitted(make(), time.perf_counter() - start, stacked)


def popularity(pair: Pair, seed: int) -> Fitted:
    return _timed(lambda: coldstart.popularity(_encoded(pair, pair.target)))


def popular_with_shared(pair: Pair, seed: int) -> Fitted:
    """What is popular among the users of both domains."""
    rows = _encoded(pair, pair.target)
    assert rows.user is not None
    shared = pair.domains[pair.source].interactions["user"].unique()
    known = pd.Index(shared).get_indexer(pd.Index(rows.encoder.users.decode(rows.user))) >= 0
    return _timed(lambda: coldstart.popularity(rows.subset(known)))


def alone(pair: Pair, seed: int, **setting: Any) -> Fitted:
    return Fitted(*_factorised(pair, pair.target, seed, setting))


def alone_ease(pair: Pair, seed: int, **setting: Any) -> Fitted:
    return _timed(lambda: train.fit_ease(_encoded(pair, pair.target), **setting))


def alone_knn(pair: Pair, seed: int, **setting: Any) -> Fitted:
    return _timed(lambda: train.fit_item_knn(_encoded(pair, pair.target), **setting))


def alone_and_knn(pair: Pair, seed: int, *, first: Setting, neighbours: Setting, weight: float) -> Fitted:
    """The target's factorisation and its neighbours blended: what blending is worth without any source."""
    factors = alone(pair, seed, **first)
    rows = _encoded(pair, pair.target)
    knn = _once(_of(pair, "knn alone", 0, neighbours), lambda: train.fit_item_knn(rows, **neighbours))
    mixed = _timed(lambda: coldstart.mix([factors.recommender, knn[0]], [[1.0] * 3, [weight] * 3]))
    return mixed._replace(seconds=mixed.seconds + factors.seconds + knn[1])


def stacked_als(pair: Pair, seed: int, **setting: Any) -> Fitted:
    return Fitted(*_factorised(pair, None, seed, setting), pair.target)


def stacked_knn(pair: Pair, seed: int, **setting: Any) -> Fitted:
    return _timed(lambda: train.fit_item_knn(_encoded(pair, None), **setting), pair.target)


def stacked_ease(pair: Pair, seed: int, *, l2: float, source: float = 1.0) -> Fitted:
    """Weights from items of the source are penalised ``source`` times as much, where users are shared."""
    if source != 1.0:
        return Fitted(*_by_domain(pair, l2 * source, l2), pair.target)
    if pair.negatives:
        return _ease_with_history(pair, l2)
    return _timed(lambda: train.fit_ease(_encoded(pair, None), l2=l2), pair.target)


def _ease_with_history(pair: Pair, l2: float) -> Fitted:
    """Weights without held-out users' rows in the target, solved once for all numbers of shots; those are history."""
    frames = pair.domains[pair.target]
    held = frames.interactions["user"].isin(pair.held)
    known = frames._replace(interactions=frames.interactions[~held])
    key = pair.source, pair.target, len(known.interactions), l2
    if key not in _SOLVED:
        rows = _encoded(pair._replace(domains={**pair.domains, pair.target: known}, shots=0), None)
        solved, path = _timed(lambda: train.fit_ease(rows, l2=l2)), Path(_FOLDER.name) / str(len(_SOLVED))
        jaxrec.save(solved.recommender, path)
        _SOLVED[key] = path, solved.seconds
    path, seconds = _SOLVED[key]
    fitted, history = Fitted(jaxrec.load(path), seconds, pair.target), frames.interactions[held]
    if not len(history):
        return fitted
    return fitted._replace(recommender=coldstart.add(fitted.recommender, interactions=fitted.named(history, pair)))


_FOLDER = tempfile.TemporaryDirectory()
_SOLVED: dict[tuple[Any, ...], tuple[Path, float]] = {}  # too large to be kept in memory for every penalty


def _by_domain(pair: Pair, l2_source: float, l2_target: float) -> tuple[Recommender, float]:
    rows = _encoded(pair, None)
    ids = rows.encoder.items.ids.tolist()
    l2 = pd.Series([l2_source if each.startswith(f"{pair.source}/") else l2_target for each in ids], index=ids)
    return _once(_of(pair, f"ease {l2_source} {l2_target}", 0, {}), lambda: train.fit_ease(rows, l2=l2))


def mixed_ease(pair: Pair, seed: int, *, l2_source: float, l2_target: float, weight: float) -> Fitted:
    """What the history in the target says, and ``weight`` times what the one in the source says, each by itself."""
    nothing = 1e9  # no weights from that domain
    parts = [_by_domain(pair, nothing, l2_target), _by_domain(pair, l2_source, nothing)]
    mixed = _timed(lambda: coldstart.mix([part for part, _ in parts], [[1.0] * 3, [weight] * 3]), pair.target)
    return mixed._replace(seconds=mixed.seconds + sum(seconds for _, seconds in parts))


def _both(pair: Pair, seed: int, setting: Setting) -> tuple[list[Recommender], float]:
    found = [_factorised(pair, name, seed, setting) for name in (pair.source, pair.target)]
    return [each for each, _ in found], sum(seconds for _, seconds in found)


def emcdr(pair: Pair, seed: int, **setting: Any) -> Fitted:
    """A linear map; users with rows in the target keep the vector that they have there."""
    l2 = setting.pop("map_l2", None)
    found, seconds = _both(pair, seed, setting)
    bridge = _timed(lambda: transfer.emcdr(*found, l2=l2, seed=seed))
    return bridge._replace(seconds=bridge.seconds + seconds)


def _bpr(pair: Pair, domain: str, seed: int, setting: Setting) -> tuple[Recommender, float]:
    def make() -> Recommender:
        rows, options = _encoded(pair, domain), dict(setting)
        decay, rate = options.pop("decay"), options.pop("rate")
        optimizer = optim.row_sparse(optax.adamw(rate, weight_decay=decay))
        model = models.MatrixFactorization.for_data(rows, dim=options.pop("dim"))
        return jaxrec.fit(
            model, rows, loss="bpr", optimizer=optimizer, batch_size=1024, seed=seed, progress=False, **options
        )

    return _once(_of(pair, f"bpr {domain}", seed, setting), make)


def emcdr_bpr(pair: Pair, seed: int, *, kind: Any, **setting: Any) -> Fitted:
    """As its paper has it: factorisations trained by BPR, a linear or a perceptron's map of squared error."""
    found, seconds = zip(*(_bpr(pair, name, seed, setting) for name in (pair.source, pair.target)), strict=True)
    bridge = _timed(lambda: transfer.emcdr(*found, seed=seed, kind=kind))
    return bridge._replace(seconds=bridge.seconds + sum(seconds))


def ptupcdr(pair: Pair, seed: int, *, rate: float, **setting: Any) -> Fitted:
    setting.pop("map_l2", None)
    found, seconds = _both(pair, seed, setting)
    options: dict[str, Any] = {"optimizer": optim.row_sparse(optax.adam(rate)), "epochs": 5, "batch_size": 256}
    negatives = data.Negatives(shared=512)

    def once() -> Fitted:
        bridge = _timed(
            lambda: transfer.ptupcdr(
                *found, hidden=(16,), loss="sampled_softmax", negatives=negatives, seed=seed, progress=False, **options
            )
        )
        return bridge._replace(seconds=bridge.seconds + seconds)

    return _once(_of(pair, f"ptupcdr {rate}", seed, setting), once)[0]


def carried(pair: Pair, seed: int, *, content_l2: float, **setting: Any) -> Fitted:
    """The source's vectors as features in the target's factorisation: a prior for whoever is new or little known."""
    rows, seconds = _with_source(pair, seed, setting)
    options = {"content": True, "content_l2": content_l2, "joint": (pair.shared,), "epochs": 10, "seed": seed}

    def once() -> Fitted:
        found = _timed(lambda: train.fit_als(rows, **options, **setting))
        return found._replace(seconds=found.seconds + seconds)

    return _once(_of(pair, f"carried {content_l2}", seed, setting), once)[0]


def _with_source(pair: Pair, seed: int, setting: Setting) -> tuple[data.Dataset, float]:
    """The target's training part with the source's vectors as features, and the seconds that the source took."""
    source, seconds = _factorised(pair, pair.source, seed, setting)

    def make() -> data.Dataset:
        frames, side = pair.domains[pair.target], pair.shared
        vectors = transfer.carry(source, side=side)
        specs = data.Vector("source", scale="rms")
        known = frames.users if side == "user" else frames.items
        merged = vectors if known is None else known.merge(vectors, how="outer", on=side)
        changed = {f"{side}_features": (*getattr(frames.schema, f"{side}_features"), specs)}
        schema = dataclasses.replace(frames.schema, **changed)
        sides = {"users": frames.users, "items": frames.items, f"{side}s": merged}
        sides = {name: frame for name, frame in sides.items() if getattr(schema, f"{name[:-1]}_features")}
        with warnings.catch_warnings():  # users of the target alone have no vector, as they should
            warnings.simplefilter("ignore", UserWarning)
            return data.encode(data.Parts(frames.interactions, None, None), schema, **sides).train

    return _once(_of(pair, "with source", seed, setting), make)[0], seconds


def carried_and_knn(pair: Pair, seed: int, *, first: Setting, neighbours: Setting, weight: float) -> Fitted:
    """The factorisation with the source's prior, and ``weight`` times what goes with the history in the target."""
    bridge = carried(pair, seed, **first)
    rows, _ = _with_source(pair, seed, {name: value for name, value in first.items() if name != "content_l2"})
    knn = _once(_of(pair, "knn", seed, {**first, **neighbours}), lambda: train.fit_item_knn(rows, **neighbours))
    mixed = _timed(lambda: coldstart.mix([bridge.recommender, knn[0]], [[1.0] * 3, [weight] * 3]))
    return mixed._replace(seconds=mixed.seconds + bridge.seconds + knn[1])


def blended_and_knn(pair: Pair, seed: int, *, blended: Setting, neighbours: Setting, weight: float) -> Fitted:
    """Three ways to use the source, and ``weight`` times what goes with the history in the target."""
    together = blend([emcdr, carried, regress], pair, seed, **blended)
    rows = together.recommender.encoder.encode(pair.domains[pair.target].interactions)
    knn = _timed(lambda: train.fit_item_knn(rows, **neighbours))
    mixed = _timed(lambda: coldstart.mix([together.recommender, knn.recommender], [[1.0] * 3, [weight] * 3]))
    return mixed._replace(seconds=mixed.seconds + together.seconds + knn.seconds)


def joint(pair: Pair, seed: int, *, decay: float, **setting: Any) -> Fitted:
    """Both domains in one training, users shared; items compete with those of their own domain."""

    def make() -> Recommender:
        stacked = transfer.stack(pair.domains)
        parts = data.Parts(stacked.interactions, None, None)
        rows = data.encode(parts, stacked.schema, items=stacked.items).train
        return jaxrec.fit(
            models.SharedSpecific.for_data(rows, dim=64, **setting),
            rows,
            loss="sampled_softmax",
            negatives=data.Negatives(shared=1024),
            optimizer=optim.row_sparse(optax.adamw(0.01, weight_decay=decay)),
            epochs=8,
            seed=seed,
            progress=False,
        )

    return Fitted(*_once(_of(pair, f"joint {decay}", seed, setting), make), pair.target)


def regress(pair: Pair, seed: int, **setting: Any) -> Fitted:
    source, target = (_encoded(pair, name) for name in (pair.source, pair.target))
    return Fitted(*_once(_of(pair, "regress", 0, setting), lambda: transfer.regress(source, target, **setting)))


def blend(
    fits: list[Callable[..., Fitted]], pair: Pair, seed: int, *, parts: list[Setting], weight: list[float]
) -> Fitted:
    found = [fit(pair, seed, **setting) for fit, setting in zip(fits, parts, strict=True)]
    joined = _timed(lambda: transfer.blend([part.recommender for part in found], [1.0, *weight]))
    return joined._replace(seconds=joined.seconds + sum(part.seconds for part in found))


def methods_for(pair: Pair) -> dict[str, Method]:
    """What can be done with a pair; those named ``... alone`` know nothing of the source."""
    grid = grids.SPARSE if pair.negatives else grids.DENSE
    published = {pair.source, pair.target} == {"game", "video"} and pair.shots == 0
    stacked = [*grid, *grids.MORE * pair.negatives, *grids.EVEN * published]
    own = grids.COLD if published else grids.OWN if pair.negatives else grid
    scratch = stacked if pair.negatives else [*grids.DENSE, *grids.DENSE_MORE]
    ease = grids.EASE_SPARSE if pair.negatives else grids.EASE
    ridges = (100.0, 1000.0, 10000.0) if pair.negatives else (1.0, 30.0, 300.0, 3000.0, 30000.0)
    penalties = (30.0, 100.0, 300.0) if published else (10.0, 30.0, 100.0, 300.0)
    found = {
        "popularity alone": Method(popularity, [{}]),
        "iALS alone": Method(alone, scratch),
        "EASE alone": Method(alone_ease, grids.EASE_SPARSE if pair.negatives else grids.EASE_ALONE),
        "item k-NN alone": Method(alone_knn, grids.KNN_ALONE),
        "iALS and item k-NN alone": Method(alone_and_knn, []),
        "stacked iALS": Method(stacked_als, stacked),
        "stacked EASE": Method(stacked_ease, ease),
        "stacked item k-NN": Method(stacked_knn, grids.KNN),
        "stacked iALS, source weighed": Method(stacked_als, []),
        "carried iALS": Method(carried, [{**each, "content_l2": l2} for each in own for l2 in ridges]),
        "carried iALS and item k-NN": Method(carried_and_knn, []),
        "iALS and carried iALS": Method(functools.partial(blend, [alone, carried]), []),
    }
    if pair.shared == "user" and not pair.negatives:
        found["stacked EASE, source weighed"] = Method(stacked_ease, [])
        found["EASE of each domain, mixed"] = Method(mixed_ease, [])
    maps = (20.0, 100.0) if pair.negatives else (100.0,)
    if pair.shared == "user":
        found |= {
            "popularity among shared users": Method(popular_with_shared, [{}]),
            "EMCDR over iALS": Method(emcdr, [{**each, "map_l2": l2} for each in own for l2 in maps]),
            "regression": Method(regress, harness.grid(dim=(256,), l2=penalties)),
            "carried iALS and regression": Method(functools.partial(blend, [carried, regress]), []),
            "EMCDR, carried iALS and regression": Method(functools.partial(blend, [emcdr, carried, regress]), []),
        }
        if pair.shots != 0:
            found["EMCDR, carried iALS, regression and item k-NN"] = Method(blended_and_knn, [])
    if pair.negatives and pair.shots == 0:
        found["EMCDR, MF by BPR"] = Method(
            emcdr_bpr, [{**each, "kind": kind} for each in grids.BPR for kind in grids.KINDS]
        )
    if published:
        found |= {
            "EMCDR and regression": Method(functools.partial(blend, [emcdr, regress]), []),
            "PTUPCDR over iALS": Method(ptupcdr, []),
            "EMCDR, PTUPCDR, carried iALS and regression": Method(
                functools.partial(blend, [emcdr, ptupcdr, carried, regress]), []
            ),
            "CMF": Method(joint, harness.grid(decay=grids.DECAYS, specific=(False,))),
            "shared and specific": Method(joint, harness.grid(decay=grids.DECAYS, orthogonality=(0.1,))),
            "domain-adversarial": Method(
                joint, harness.grid(decay=grids.DECAYS, specific=(False,), adversarial=(0.1,))
            ),
        }
    return found


def settings_of(name: str, method: Method, chosen: dict[str, Setting], pair: Pair) -> list[Setting]:
    """What is tried; a method over others takes those as they were chosen on validation."""
    shares = (0.125, 0.25, 0.5, 1.0)  # of a regression
    if name == "stacked iALS, source weighed":
        weights = (
            (0.03, 0.1, 0.3) if pair.shared == "user" else (0.01, 0.03, 0.1, 0.3)
        )  # there the source has 20 times the rows
        return [{**chosen["stacked iALS"], "weight": weight} for weight in weights]
    if name == "stacked EASE, source weighed":
        settings = (chosen["EASE alone"], chosen["stacked EASE"])
        return [{**each, "source": source} for each in settings for source in (3.0, 10.0, 30.0)]
    if name == "EASE of each domain, mixed":
        l2 = chosen["EASE alone"]["l2"]
        return harness.grid(l2_target=(l2,), l2_source=(300.0, 1000.0, 3000.0), weight=(0.01, 0.03, 0.1, 0.3, 1.0))
    if name in ("carried iALS and regression", "EMCDR and regression"):
        first = chosen["carried iALS" if name.startswith("carried") else "EMCDR over iALS"]
        return harness.grid(parts=([first, chosen["regression"]],), weight=tuple([each] for each in shares))
    if name == "EMCDR, carried iALS and regression":  # whom the target knows, EMCDR scores as iALS does
        parts = [chosen[each] for each in ("EMCDR over iALS", "carried iALS", "regression")]
        weights = tuple([first, second] for first in (0.5, 1.0, 2.0) for second in shares)
        return harness.grid(parts=(parts,), weight=weights)
    if name == "EMCDR, PTUPCDR, carried iALS and regression":  # as many settings as the blend without PTUPCDR
        first, *others = [chosen[each] for each in ("EMCDR over iALS", "carried iALS", "regression")]
        parts = tuple([first, {**first, "rate": rate}, *others] for rate in (1e-4, 3e-4))
        weights = tuple([1.0, second, third] for second in (0.5, 1.0, 2.0) for third in (0.25, 0.5))
        return harness.grid(parts=parts, weight=weights)
    if name == "EMCDR, carried iALS, regression and item k-NN":
        parts = {"blended": chosen["EMCDR, carried iALS and regression"], "neighbours": chosen["item k-NN alone"]}
        # The blend's scores are in units of their spread, those of neighbours are often below a hundredth.
        return [{**parts, "weight": weight} for weight in (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)]
    if name in ("carried iALS and item k-NN", "iALS and item k-NN alone"):
        first = "iALS alone" if name.endswith("alone") else "carried iALS"
        parts = {"first": chosen[first], "neighbours": chosen["item k-NN alone"]}
        return [{**parts, "weight": weight} for weight in (0.03, 0.1, 0.3, 1.0, 3.0)]
    if name == "iALS and carried iALS":
        parts = [chosen["iALS alone"], chosen["carried iALS"]]
        return harness.grid(parts=(parts,), weight=([0.5], [1.0], [2.0], [4.0]))
    if name == "PTUPCDR over iALS":
        return [{**chosen["EMCDR over iALS"], "rate": rate} for rate in (1e-4, 1e-3)]
    return method.settings
