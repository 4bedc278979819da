"""Reads a jaxrec artefact and recommends, with jax, numpy and flatbuffers alone. A copy of it lies in every artefact.

import serve
artefact = serve.load("path/to/artefact")
artefact.recommend(["user-1"], k=5)
"""

import hashlib
import json
from pathlib import Path

import jax.export
import numpy as np

FORMAT, VERSION = "jaxrec artefact", 4
_OLDEST = 2  # version that is read; its functions take context, and till 3 targets, as they come
ROWS = 4096  # most pairs that are scored at once; the manifest says fewer where a pair costs much memory


def load(folder):
    """The artefact in ``folder``. Format, version and checksums are checked first."""
    return Artefact(folder)


class Artefact:
    """Lowered functions with their arrays. Platforms: cpu, cuda and tpu."""

    def __init__(self, folder):
        folder = Path(folder)
        if not (folder / "manifest.json").is_file():
            raise FileNotFoundError(f"No artefact in {folder}: expected a folder that jaxrec.export wrote.")
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text())
        except ValueError:
            raise ValueError(f"{folder / 'manifest.json'} is damaged: no JSON. Export the model again.") from None
        came = self.manifest.get("format") if isinstance(self.manifest, dict) else self.manifest
        if came != FORMAT:
            raise ValueError(f"{folder} is {came!r}, expected {FORMAT!r}. Give another folder.")
        if self.manifest.get("version") not in range(_OLDEST, VERSION + 1):
            raise ValueError(
                f"The artefact has version {self.manifest.get('version')} and this reader reads {_OLDEST} to "
                f"{VERSION}. Use the serve.py that lies in its folder, or export the model again."
            )
        for name, digest in self.manifest["sha256"].items():
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing. Copy the whole folder, or export the model again.")
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{folder / name} is damaged: its checksum does not agree. Export the model again.")
        with np.load(folder / "arrays.npz", allow_pickle=False) as archive:
            flat = {name: archive[name] for name in archive.files}
        for name, dtype in self.manifest["dtypes"].items():  # such as bfloat16, which .npz cannot name
            flat[name] = flat[name].view(jax.numpy.dtype(dtype))
        tree = {}
        for name in self.manifest["device"]:
            *parents, leaf = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = jax.numpy.asarray(flat[name])
        self._arrays = tree
        self._functions = {
            name: jax.export.deserialize(bytearray((folder / f"{name}.jaxexport").read_bytes()))
            for name in self.manifest["functions"]
        }
        self._users, self._items = (_ids(flat, side) for side in ("user", "item"))
        self._user_index, self._item_index = (
            {raw: at for at, raw in enumerate(ids, 1)} for ids in (self._users, self._items)
        )
        self._seen = {
            name: flat[f"seen/{name}"]
            for name in ("start", "item", "added_start", "added_item", "added_value", "added_weight")
        }

    def recommend(self, users, *, k=None, touched=None, values=None, exclude=(), exclude_seen=True):
        """Lists of ``(item, score)``, best first, one list per user.

        Args:
          users: raw ids of the type that the model was trained on; one that is not known is the unknown user, whom
            ``touched`` makes known.
          k: length of the lists, at most the artefact's; by default 10, or the artefact's if that is less.
          touched: for each user a list of raw items touched since the artefact was made; unknown ones are ignored.
          values: their targets, where the model folds targets in (the manifest's ``folds`` says ``"values"``) and not
            otherwise. Each item weighs 1.
          exclude: raw items for nobody, all of them known.
          exclude_seen: whether to leave out what a user has touched.
        """
        if "recommend" not in self._functions:
            why = (
                "reads columns of the interaction itself" if self.manifest["has_items"] else "has no items to recommend"
            )
            raise ValueError(f"This artefact only scores: its model {why}. Score pairs by score(...).")
        most = self.manifest["k"]
        k = min(10, most) if k is None else k
        if not 1 <= k <= most:
            raise ValueError(f"Expected k in 1 .. {most}, the length the artefact was made for, got {k}.")
        users = _listed(users, "users")
        exclude = _listed(exclude, "exclude")
        _same_kind(exclude, self._items, "exclude")
        unknown = [item for item in exclude if item not in self._item_index]
        if unknown:
            raise ValueError(f"{len(unknown)} excluded items are unknown, such as {unknown[0]!r}. Leave them out.")
        none = {self._item_index[item] for item in exclude}
        told = self._told(users, touched, values)
        lists = []
        for start in range(0, len(users), self.manifest["users_at_once"]):
            part = {name: rows[start : start + self.manifest["users_at_once"]] for name, rows in told.items()}
            inputs = self._inputs(part)
            gone = [sorted(none | (set(items) if exclude_seen else set())) for items in part["items"]]
            inputs["exclude"] = _grid(gone, np.int32)
            found = self._call("recommend", inputs)
            if np.isnan(found["score"][: len(gone)]).any():
                raise ValueError("A score is NaN, so it has no rank. Look for NaN in the model that was exported.")
            lists += [
                [(self._items[i - 1], float(s)) for i, s in zip(row, scores, strict=True) if i > 0]
                for row, scores in zip(found["item"][:, :k], found["score"][:, :k], strict=True)
            ][: len(gone)]
        return lists

    def score(self, users=None, items=None, *, context=None, touched=None, values=None):
        """Predictions for pairs, in the target's unit; after a sigmoid probabilities, unless the target was scaled.

        ``users`` and ``items`` may be left out where the model knows none. ``context``, where it reads one, has a row
        per pair, in the data's own unit; NaN is a missing number.
        """
        width = self.manifest["context"]
        users = None if users is None else _listed(users, "users")
        if context is not None and not width:
            raise ValueError("This artefact's model reads no context. Leave context= out.")
        has_items = self.manifest["has_items"]
        items = None if items is None else _listed(items, "items")
        for name, given, known in (("users", users, self._users), ("items", items, has_items)):
            if not known and any(raw is not None for raw in given or ()):
                raise ValueError(f"This artefact's model knows no {name}. Leave {name}= out.")
        if touched is not None and not (self.manifest["folds"] or self.manifest["history"]):
            raise ValueError("This artefact's scores do not depend on touched=. Leave it out.")
        rows = np.zeros((0, width), np.float32) if context is None else self._context(context, width)
        if users is None:
            if self._users and items:
                raise ValueError("Give users= beside items=, None for one of whom nothing is known.")
            users = [None] * len(rows if items is None else items)
        told: dict = self._told(users, touched, values)
        sizes = {len(told["user"])}
        if has_items:
            items = [] if items is None else items
            _same_kind(items, self._items, "items")
            told["item"] = [self._item_index.get(item, 0) for item in items]
            sizes.add(len(items))
        if width:
            told["context"] = rows
            sizes.add(len(rows))
        if len(sizes) != 1:
            raise ValueError(f"Expected equally many users, items and rows of context, got {sorted(sizes)}.")
        found = [np.zeros(0, np.float32)]
        most = self.manifest.get("pairs_at_once", ROWS)
        for start in range(0, sizes.pop(), most):
            part = {name: each[start : start + most] for name, each in told.items()}
            inputs = self._inputs(part)
            inputs |= {"item": np.array(part["item"], np.int32)} if "item" in part else {}
            inputs |= {"context": part["context"]} if width else {}
            found.append(self._call("score", inputs)[: len(part["user"])])
        scores, affine = np.concatenate(found), self.manifest.get("target_affine")
        return scores * np.float64(affine[1]) + affine[0] if affine else scores

    def _context(self, context, width):
        rows = np.asarray(context, np.float64)
        if rows.shape in ((0,), (width,)):
            rows = rows.reshape(-1, width)
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"Expected context of shape [pairs, {width}], got {list(rows.shape)}.")
        rows = (rows - self.manifest.get("context_centre", 0.0)).astype(np.float32)
        if np.isinf(rows).any():
            raise ValueError(f"{int(np.isinf(rows).sum())} numbers of context are infinite. Mend them; NaN is missing.")
        for column, name in self.manifest.get("log1p_context", ()):
            _need_above_minus_one(rows[:, column], name)
        return rows

    def _call(self, name, inputs):
        """Padded to a power of two of rows: XLA compiles a program for every shape that it meets."""
        size = _power(len(inputs["user"]))
        padded = {
            name: np.pad(each, ((0, size - len(each)), *((0, 0),) * (each.ndim - 1))) for name, each in inputs.items()
        }
        return jax.tree.map(np.asarray, self._functions[name].call(self._arrays, padded))

    def _told(self, users, touched, values):
        """For each user the index, all items touched, and those since the training with weights, values and marks."""
        _same_kind(users, self._users, "users")
        for name, lists in (("touched", touched), ("values", values)):
            if lists is not None and len(lists) != len(users):
                raise ValueError(f"Expected a list of {name} for each of {len(users)} users, got {len(lists)}.")
        touched = None if touched is None else [_listed(raw, "each of touched") for raw in touched]
        for raw in touched or ():
            _same_kind(raw, self._items, "touched")
        valued, affine = self.manifest["folds"] == "values", self.manifest.get("target_affine")
        if valued and touched is not None and values is None:
            raise ValueError("The model was trained on targets: give values= beside touched=.")
        if values is not None:
            if not valued:
                raise ValueError("This artefact's model folds no targets in, so values= changes nothing. Leave it out.")
            shift, unit = affine or (0.0, 1.0)
            values = [((np.asarray(row, np.float64) - shift) / unit).astype(np.float32).reshape(-1) for row in values]
            flat = np.concatenate([np.zeros(0, np.float32), *values])
            if not np.isfinite(flat).all():
                raise ValueError(f"Expected finite values, got {flat[~np.isfinite(flat)][0]}. Leave such items out.")
            if self.manifest.get("log1p_target"):
                _need_above_minus_one(flat, self.manifest["log1p_target"])
            if self.manifest.get("target_range"):
                _need_inside(flat, *self.manifest["target_range"])
        told: dict = {"user": [self._user_index.get(user, 0) for user in users]}
        told |= {"items": [], "added": [], "weight": [], "value": [], "given": []}
        for at, user in enumerate(told["user"]):
            raw = touched[at] if touched is not None else []
            given = values[at].tolist() if values is not None else [0.0] * len(raw)
            if len(given) != len(raw):
                raise ValueError(f"Expected one value for each touched item, got {len(given)} for {len(raw)}.")
            known = [pair for pair in zip(raw, given, strict=True) if pair[0] in self._item_index]
            new = [self._item_index[item] for item, _ in known]
            stored = self._rows("added_", "item", user)
            told["items"].append(self._rows("", "item", user) + new)
            told["added"].append(stored + new)
            told["weight"].append(self._rows("added_", "weight", user) + [1.0] * len(new))
            told["value"].append((self._rows("added_", "value", user) if valued else []) + [each for _, each in known])
            told["given"].append([0.0] * len(stored) + [0.0 if affine else 1.0] * len(new))
        return told

    def _inputs(self, told):
        """As the functions take it."""
        length, folds = self.manifest["history"], self.manifest["folds"]
        inputs: dict = {"user": np.array(told["user"], np.int32)}
        if length:
            inputs["history"] = _grid([items[-length:] for items in told["items"]], np.int32, width=length)
        if folds:
            inputs |= {"added": _grid(told["added"], np.int32), "weight": _grid(told["weight"], np.float32)}
        if folds == "values":
            inputs |= {name: _grid(told[name], np.float32) for name in ("value", "given")}
        return inputs

    def _rows(self, prefix, name, user):
        start = self._seen[f"{prefix}start"]
        return [] if user == 0 else self._seen[f"{prefix}{name}"][start[user] : start[user + 1]].tolist()


def _listed(ids, name):
    if hasattr(ids, "columns") or isinstance(ids, dict):
        raise TypeError(f"Expected a list of raw ids for {name}, got a {type(ids).__name__}. Give its column of ids.")
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
        raise TypeError(f"Expected a list of raw ids for {name}, got {ids!r}. Say [{ids!r}].")
    return [raw.item() if isinstance(raw, np.generic) else raw for raw in ids]


def _same_kind(ids, known, name):
    """An id of another type is never known, and would pass for somebody unknown."""
    for raw in ids:
        if known and raw is not None and isinstance(raw, str) != isinstance(known[0], str):
            raise TypeError(
                f"Expected {type(known[0]).__name__} ids for {name}, such as {known[0]!r}, got {raw!r} "
                f"({type(raw).__name__}). Convert them."
            )


def _need_above_minus_one(values, name):
    if np.nanmin(values, initial=0.0) <= -1:
        raise ValueError(
            f"Expected values above -1 for the log1p scale of {name!r}, got {np.nanmin(values):g}. Mend them."
        )


def _need_inside(values, name, low, high):
    beyond = values[(values < np.float32(low)) | (values > np.float32(high))]
    if len(beyond):
        raise ValueError(
            f"{len(beyond)} values are outside the range [{low:g}, {high:g}] that {name!r} had in training, such as "
            f"{beyond[0]:g}. The scale 'quantile' ends there: leave such items out."
        )


def _ids(flat, side):
    if f"ids/{side}" in flat:
        return flat[f"ids/{side}"].tolist()
    data, ends = flat[f"ids/{side}_text"].tobytes(), flat[f"ids/{side}_ends"].tolist()
    return [data[start:end].decode("utf-8", "surrogatepass") for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _grid(rows, dtype, *, width=None):
    """Side by side, padded with 0, to a power of two of columns where no width is given."""
    width = _power(max([1, *map(len, rows)])) if width is None else width
    grid = np.zeros((len(rows), width), dtype)
    for at, row in enumerate(rows):
        grid[at, : len(row)] = row
    return grid


def _power(number):
    return 1 << (number - 1).bit_length()
