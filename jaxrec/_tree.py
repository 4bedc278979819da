"""The one path language. A leaf of a parameter tree is called by its path, ``item/embedding``.

Patterns are shell-style and cover the whole path: ``*`` also crosses ``/``, so ``item/*`` is the whole subtree. One
that starts with ``!`` takes paths out again: ``("*", "!*bias")`` is everything but biases.
Everything that selects, splits, copies or prints parameters by name goes through this file.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec._types import Params

Patterns = str | Sequence[str]


def flatten(params: Mapping[Any, Any]) -> dict[str, Any]:
    """Leaves by path, in the order of the tree. Empty subtrees vanish."""
    return dict(_walk(params, ""))


def _walk(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                f"Expected non-empty string keys without '/' in a parameter tree, got {name!r} under "
                f"'{prefix}'. Rename the key; '/' separates the parts of a path."
            )
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def shapes(model: Any) -> Params:
    """The tree that ``model.init`` gives, shapes and dtypes alone: nothing is drawn, not even a key."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))


@jax.jit
def copied(tree: Any) -> Any:
    """A copy of every leaf, all by one program: what is donated to training should be nobody else's."""
    return jax.tree.map(jnp.copy, tree)


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """The nested dict whose leaves by path are ``leaves``."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def covers(pattern: str, path: str) -> bool:
    """Whether the shell-style pattern covers the whole path, or is it: a column's name may have brackets."""
    return path == pattern or fnmatchcase(path, pattern)


def match(paths: Iterable[str], patterns: Patterns) -> tuple[str, ...]:
    """The paths that any pattern covers and none with ``!`` takes out, in their own order. A path stands for itself.

    A pattern that covers none is an error, and so is taking out alone.
    """
    paths = tuple(paths)
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    found: tuple[set[str], set[str]] = set(), set()
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        covered = [bare] if bare in paths else [path for path in paths if covers(bare, path)]
        if not covered:
            raise ValueError(
                f"Pattern {pattern!r} matches no parameter, so it selects nothing. Parameter paths: "
                f"{', '.join(paths)}. Patterns are shell-style and cover the whole path, for example 'item/*'."
            )
        found[bare != pattern].update(covered)
    if patterns and not found[0]:
        raise ValueError(
            f"{', '.join(map(repr, patterns))} only takes paths out, so it selects nothing. Say of what, for example "
            f"('*', {patterns[0]!r})."
        )
    return tuple(path for path in paths if path in found[0] - found[1])


def split(params: Params, patterns: Patterns) -> tuple[Params, Params]:
    """``(rest, matched)``: two trees that have no leaf in common and make up ``params``."""
    leaves = flatten(params)
    chosen = set(match(leaves, patterns))
    rest = {path: leaf for path, leaf in leaves.items() if path not in chosen}
    return unflatten(rest), unflatten({path: leaf for path, leaf in leaves.items() if path in chosen})


def merge(*trees: Params) -> Params:
    """One tree with the leaves of all; the inverse of ``split``. A path in two trees is an error."""
    leaves: dict[str, Any] = {}
    for tree in trees:
        for path, leaf in flatten(tree).items():
            if path in leaves:
                raise ValueError(f"Parameter {path!r} stands in two of the trees to be merged. Split them first.")
            leaves[path] = leaf
    return unflatten(leaves)


def get(params: Params, path: str) -> Any:
    """The leaf at ``path``."""
    leaves = flatten(params)
    if path not in leaves:
        raise ValueError(f"No parameter {path!r}. Parameter paths: {', '.join(leaves)}.")
    return leaves[path]


def replace(params: Params, leaves: Mapping[str, Any]) -> Params:
    """A new tree with some leaves exchanged; the paths must exist."""
    old = flatten(params)
    match(old, tuple(path for path in leaves if path not in old))
    return unflatten({**old, **leaves})


def drop(params: Params, paths: Iterable[str]) -> Params:
    """A new tree without the leaves at ``paths``; paths that are not there are ignored."""
    gone = set(paths)
    return unflatten({path: leaf for path, leaf in flatten(params).items() if path not in gone})


def map_with_path(function: Callable[[str, Any], Any], params: Params) -> Params:
    """``function(path, leaf)`` at every leaf."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(params).items()})


def under_rule(rule: str, path: str) -> "re.Match[str] | None":
    """What each ``*`` of a rule of ``rename`` stands for in the path, if the rule covers it."""
    return re.fullmatch("(.*?)".join(map(re.escape, rule.split("*"))), path)


def rename(paths: Iterable[str], rules: Mapping[str, str]) -> dict[str, str]:
    """New paths by old: of those that a rule covers, the rule's right side with what its ``*`` stood for.

    A rule has as many ``*`` on the right as on the left, each of which stands for as few characters as will do; other
    characters stand for themselves. Paths that no rule covers keep their name, unless a rule gives it to another one;
    then they are left out. Two rules for one path, rules that give two paths one name and a rule that covers nothing
    are errors.
    """
    paths, found = tuple(paths), {}
    for old, new in rules.items():
        if old.count("*") != new.count("*"):
            raise ValueError(f"Expected a rule with as many '*' on the right as on the left, got {old!r} to {new!r}.")
        pieces = new.split("*")
        covered = {path: matched for path in paths if (matched := under_rule(old, path))}
        if not covered:
            raise ValueError(
                f"The rule {old!r} to {new!r} renames nothing; '*' is the only wildcard. Parameter paths: "
                f"{', '.join(paths)}."
            )
        for path, matched in covered.items():
            if path in found:
                raise ValueError(f"Two rules rename {path!r}, one of them {old!r} to {new!r}. Narrow one.")
            stood = [*matched.groups(), ""]
            found[path] = "".join(piece + part for piece, part in zip(pieces, stood, strict=True))
    taken: dict[str, str] = {}
    for path, name in found.items():
        if name in taken:
            raise ValueError(f"Both {taken[name]!r} and {path!r} would become {name!r}. Narrow one of the rules.")
        taken[name] = path
    return {path: found.get(path, path) for path in paths if path in found or path not in taken}
