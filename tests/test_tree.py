"""The path language: what is selected, split and merged."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import _tree

PARAMS = {
    "user": {"embedding": jnp.ones((3, 2)), "mlp": {"0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}},
    "item": {"embedding": jnp.zeros((4, 2))},
    "bias": jnp.zeros(()),
}
PATHS = ["user/embedding", "user/mlp/0/kernel", "user/mlp/0/bias", "item/embedding", "bias"]


def test_flatten_and_unflatten_are_inverse():
    leaves = _tree.flatten(PARAMS)
    assert list(leaves) == PATHS
    assert _tree.unflatten(leaves) == PARAMS


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("user/*", PATHS[:3]),
        ("*/bias", ["user/mlp/0/bias"]),
        ("bias", ["bias"]),
        (("item/*", "bias"), ["item/embedding", "bias"]),
        ("user/mlp/?/kernel", ["user/mlp/0/kernel"]),
        ("*", PATHS),
        ((), []),
        (("*", "!*bias"), [path for path in PATHS if not path.endswith("bias")]),
        (("!user/*", "*"), PATHS[3:]),
    ],
)
def test_patterns_cover_the_whole_path(patterns, expected):
    assert list(_tree.match(PATHS, patterns)) == expected


def test_a_path_is_a_pattern_of_itself_whatever_it_is_called():
    paths = ("item/size [cm]/embedding", "item/size c/embedding", "item/note*")
    assert _tree.match(paths, paths[:1]) == paths[:1]
    assert _tree.match(paths, ("*", f"!{paths[0]}")) == paths[1:]


def test_taking_out_alone_selects_nothing_and_is_an_error():
    with pytest.raises(ValueError, match="'!item/\\*' only takes paths out.*for example \\('\\*', '!item/\\*'\\)"):
        _tree.match(PATHS, "!item/*")


@pytest.mark.parametrize("pattern", ["user", "embedding", "items/*", "user/mlp", "!items/*"])
def test_a_pattern_that_matches_nothing_is_an_error(pattern):
    with pytest.raises(ValueError, match="matches no parameter, so it selects nothing.*user/embedding"):
        _tree.match(PATHS, ("bias", pattern))


def test_split_parts_have_no_leaf_in_common_and_merge_to_the_whole():
    rest, matched = _tree.split(PARAMS, "user/*")
    assert not set(_tree.flatten(rest)) & set(_tree.flatten(matched))
    assert _tree.flatten(_tree.merge(rest, matched)).keys() == set(PATHS)
    assert _tree.merge(rest, matched)["user"]["embedding"] is PARAMS["user"]["embedding"]


def test_merging_the_same_path_twice_is_an_error():
    with pytest.raises(ValueError, match="'bias' stands in two"):
        _tree.merge({"bias": 1}, {"bias": 2})


@pytest.mark.parametrize("tree", [{"a/b": 1}, {1: 2}, {"": 1}])
def test_keys_must_be_usable_in_a_path(tree):
    with pytest.raises(ValueError, match="non-empty string keys without '/'"):
        _tree.flatten(tree)


def test_get_replace_and_drop():
    assert _tree.get(PARAMS, "item/embedding").shape == (4, 2)
    with pytest.raises(ValueError, match="No parameter 'item/kernel'"):
        _tree.get(PARAMS, "item/kernel")
    new = _tree.replace(PARAMS, {"bias": 3.0})
    assert new["bias"] == 3.0 and float(PARAMS["bias"]) == 0.0
    with pytest.raises(ValueError, match="matches no parameter"):
        _tree.replace(PARAMS, {"nowhere": 1})
    assert set(_tree.flatten(_tree.drop(PARAMS, ["bias", "nowhere"]))) == set(PATHS) - {"bias"}


def test_map_with_path_sees_every_leaf():
    shapes = _tree.map_with_path(lambda path, leaf: (path, np.shape(leaf)), PARAMS)
    assert shapes["user"]["mlp"]["0"]["bias"] == ("user/mlp/0/bias", (2,))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, PATHS),
        ({"user/*": "customer/*"}, ["customer/embedding", "customer/mlp/0/kernel", "customer/mlp/0/bias", *PATHS[3:]]),
        ({"bias": "offset"}, [*PATHS[:4], "offset"]),
        ({"*/mlp/*/bias": "*/layers/*/b"}, ["user/embedding", PATHS[1], "user/layers/0/b", *PATHS[3:]]),
        ({"user/embedding": "item/embedding", "item/embedding": "user/embedding"},
         ["item/embedding", *PATHS[1:3], "user/embedding", "bias"]),
        ({"user/embedding": "item/embedding"}, ["item/embedding", *PATHS[1:3], "bias"]),
    ],
)  # fmt: skip
def test_rules_rename_paths(rules, expected):
    assert list(_tree.rename(PATHS, rules).values()) == expected


def test_a_name_may_have_brackets_on_either_side():
    paths = ["item/size [cm]/embedding", "item/size [cm]/bias", "item/new!"]
    rules = {"item/size [cm]/*": "item/size/*", "item/new!": "item/new [?]"}
    assert list(_tree.rename(paths, rules).values()) == ["item/size/embedding", "item/size/bias", "item/new [?]"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"users/*": "x/*"}, "The rule 'users/\\*' to 'x/\\*' renames nothing; .*Parameter paths: user/embedding"),
        ({"user/*": "x/*", "item/*": "x/*"}, "Both 'user/embedding' and 'item/embedding' would become 'x/embedding'"),
        ({"user/*": "a/*", "*/embedding": "b/*"}, "Two rules rename 'user/embedding', one of them '\\*/embedding'"),
        ({"user/*": "all"}, "as many '\\*' on the right as on the left, got 'user/\\*' to 'all'"),
        ({"user/mlp/?/bias": "b"}, "renames nothing; '\\*' is the only wildcard"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        _tree.rename(PATHS, rules)
