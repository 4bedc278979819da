"""Strict settings for every test, and worlds and models that several of them share."""

import jaxtyping

jaxtyping.install_import_hook("jaxrec", "typecheck.check")

import atexit  # noqa: E402
import importlib.util  # noqa: E402
import itertools  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

if "PYTEST_XDIST_WORKER" not in os.environ:
    # What one worker, or a process that a test starts, has compiled the others read. The folder lives as long as the
    # run, so that nothing depends on an earlier one.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxrec-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402
from helpers import FEWER_EMITTERS  # noqa: E402

import jaxrec  # noqa: E402
from jaxrec import data, models  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")
# The suite is bound by compiling, so it compiles fast and badly; what is asked of a compiled program is asked of one
# that was compiled with `helpers.AS_USERS`, which has to give back all that is taken here. This is a fifth less time.
jax.config.update("jax_disable_most_optimizations", True)
# XLA's newer way to emit fused loops takes nearly half of the compiling. A flag that a version of jaxlib does not know
# ends the process, so it is given only where it was tried.
if FEWER_EMITTERS:
    # Each worker has a core of its own, so that a program compiled in many parts at once only takes longer, by a tenth.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
jax.config.update("jax_num_cpu_devices", 8)  # all on the same cores; only the tests of sharding use more than one


_TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def few_mappings() -> Iterator[None]:
    """Compiled code is mapped into memory piece by piece, and Linux ends a process at 65,530 pieces."""
    yield
    maps = Path("/proc/self/maps")
    if next(_TESTS) % 8 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:  # counting takes a while
        jax.clear_caches()


@pytest.fixture(scope="session")
def world() -> data.World:
    """Two small domains with implicit feedback."""
    return data.generate(
        seed=0, source_users=300, target_users=200, source_items=80, target_items=60, source_interactions=20.0
    )


@pytest.fixture(scope="session")
def rated_world() -> data.World:
    """Two small domains with ratings."""
    return data.generate(
        seed=1,
        source_users=300,
        target_users=200,
        source_items=80,
        target_items=60,
        source_interactions=20.0,
        feedback="explicit",
    )


def encoded(frames: data.Frames, split=data.split_random, **options) -> data.Parts:
    """A domain's frames, split and encoded."""
    arguments = (frames.interactions,) if split is data.split_random else (frames.interactions, frames.schema)
    parts = split(*arguments, validation=0.15, test=0.15, seed=0)
    return data.encode(parts, frames.schema, users=frames.users, items=frames.items, **options)


@pytest.fixture(scope="session")
def parts(world: data.World) -> data.Parts:
    """The target domain with cold users held out."""
    return encoded(world.target, data.split_cold_users)


@pytest.fixture(scope="session")
def rated_parts(rated_world: data.World) -> data.Parts:
    """The rated target domain, split at random."""
    return encoded(rated_world.target)


@pytest.fixture(scope="session")
def factorization(parts: data.Parts) -> jaxrec.train.Recommender:
    """A trained matrix factorization."""
    model = models.MatrixFactorization.for_data(parts.train, dim=8)
    return jaxrec.fit(model, parts.train, epochs=5, batch_size=128)


@pytest.fixture(scope="session")
def towers(parts: data.Parts) -> jaxrec.train.Recommender:
    """A trained two-tower model without a history."""
    model = models.TwoTower.for_data(parts.train, dim=8, hidden=(16,), code_dim=4)
    return jaxrec.fit(model, parts.train, epochs=5, batch_size=128)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, which is never part of the project."""
    folder = os.environ.get("JAXREC_DATA")
    if not folder:
        pytest.skip("JAXREC_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def reference(real_data: Path):
    """The plain NumPy evaluator that lies beside the real data."""
    path = real_data.parent / "reference_metrics.py"
    if not path.is_file():
        pytest.skip(f"there is no {path.name} beside JAXREC_DATA")
    spec = importlib.util.spec_from_file_location("reference_metrics", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
