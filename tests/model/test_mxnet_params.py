"""Reader of MXNet's parameter files: it accepts every file that MXNet writes, and rejects all others."""

import struct
import tracemalloc
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crepe_dist.errors import UserError
from crepe_dist.model import mxnet_params, weights_io

KINDS = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")


def file(*arrays: bytes, names: tuple[bytes, ...] = (), count: int | None = None) -> bytes:
    said = len(arrays) if count is None else count
    ends = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", 0x112, 0, said) + b"".join(arrays) + struct.pack("<Q", len(names)) + ends


def array(shape: tuple[int, ...] = (2, 3), flag: int = 0, data: bytes = bytes(24), storage: int = 0) -> bytes:
    head = struct.pack("<Iii", mxnet_params.ARRAY, storage, len(shape)) + struct.pack(f"<{len(shape)}q", *shape)
    return head + struct.pack("<iii", 1, 0, flag) + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.params"


@pytest.mark.parametrize("kind", KINDS)
def test_what_mxnet_writes_is_read(kind, path):
    generator = np.random.default_rng(0)
    shapes = {"a": (1,), "ünïcode.weight": (5,), "b": (2, 3), "c": (2, 1, 7), "d": (1, 2, 3, 4, 5)}
    arrays = {name: generator.normal(0, 50, shape).astype(kind) for name, shape in shapes.items()}
    mx.nd.save(str(path), {name: mx.nd.array(each, dtype=kind) for name, each in arrays.items()})
    read = mxnet_params.read(path)
    assert list(read) == list(arrays)
    for name, each in arrays.items():
        assert read[name].dtype == each.dtype
        np.testing.assert_array_equal(read[name], each)
    mxnet_params.write(path.with_name("ours"), read)
    assert path.with_name("ours").read_bytes() == path.read_bytes()
    mx.nd.save(str(path), {})
    assert mxnet_params.read(path) == {}


LYING = {
    "empty": (b"", "does not start"),
    "header alone": (struct.pack("<Q", 0x112), "ends in the middle"),
    "arrays without end": (file(count=2**64 - 1), "18,446,744,073,709,551,615 arrays"),
    "more arrays than there are": (file(array(), count=9_999), "ends in the middle|not a dense array"),
    "shape beyond the file": (file(array((1 << 40,)), names=(b"x",)), "has the shape"),
    "product beyond 64 bits, but empty": (file(array((1 << 62, 1 << 62, 0), data=b""), names=(b"x",)), "has the shape"),
    "negative length": (file(array((-6,)), names=(b"x",)), "has the shape"),
    "never set": (file(array((), data=b"")), "not a dense array"),
    "sparse": (file(array(storage=1), names=(b"x",)), "not a dense array"),
    "unknown type": (file(array(flag=8), names=(b"x",)), "unknown dtype"),
    "no names": (file(array()), "1 arrays and 0 names"),
    "a name twice": (file(array(), array(), names=(b"x", b"x")), "the same name"),
    "an endless name": (file(array())[:-8] + struct.pack("<QQ", 1, 2**63), "the name of array 0 has"),
    "a name that is not UTF-8": (file(array(), names=(b"\xff",)), "not UTF-8"),
    "something behind the end": (file(array(), names=(b"x",)) + b"\0", "follow its end"),
}


@pytest.mark.parametrize(("data", "complaint"), LYING.values(), ids=LYING)
def test_lies_are_told_from_arrays(data, complaint, path):
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UserError, match=complaint) as raised:
        weights_io.load(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert "is not a file of MXNet parameters" in str(raised.value)


def test_a_file_full_of_holes_is_not_read(path):
    with path.open("wb") as stream:
        stream.write(file(array((1 << 40,), 3, b"")))
        stream.truncate(1 << 41)
    with pytest.raises(UserError, match="the limit is"):
        weights_io.load(path)


# Numbers that break a reader, in 4 and in 8 bytes.
WILD = [
    struct.pack(f"<{kind}", each)
    for kind, bits in (("I", 32), ("Q", 64))
    for each in (0, 1, 2 ** (bits - 1), 2**bits - 1)
]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("real") / "real.params"
    mx.random.seed(1)
    arrays = {f"{i}.weight": mx.nd.random.normal(shape=(3, 2 + i)).astype(kind) for i, kind in enumerate(KINDS)}
    mx.nd.save(str(path), arrays)
    return path.read_bytes()


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1000), removed=st.integers(0, 50), added=st.sampled_from(WILD) | st.binary(max_size=20))
def test_a_damaged_file_is_refused_or_read_as_its_size_allows(place, removed, added, real, path):
    place %= len(real)
    path.write_bytes(data := real[:place] + added + real[place + removed :])
    tracemalloc.start()
    try:
        arrays = mxnet_params.read(path).values()
        assert sum(each.nbytes for each in arrays) <= len(data)
        assert all(each.dtype in mxnet_params.TYPES.values() for each in arrays)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20
