"""Pickle files give arrays and plain containers, and run nothing."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import Tensor, write_torch

from keras_seg.weights import pickles
from keras_seg.weights.pickles import load_pickle, load_torch

ARRAYS = {
    "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "half": np.arange(5, dtype=np.float16),
    "big_endian": np.arange(4, dtype=">i4"),
    "flags": np.array([True, False]),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
}


class Reduced:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write(path: Path, content, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back_as_they_were(tmp_path, protocol):
    content = {"model": collections.OrderedDict(ARRAYS), "__author__": "somebody", "list": [1, (2.5, None)]}
    loaded = load_pickle(write(tmp_path / "weights.pkl", content, protocol))
    assert loaded["__author__"] == "somebody" and loaded["list"] == [1, (2.5, None)]
    for name, array in ARRAYS.items():
        assert loaded["model"][name].dtype == array.dtype
        np.testing.assert_array_equal(loaded["model"][name], array)


def test_python_2_wrote_arrays_as_text(tmp_path):
    # what NumPy under Python 2 gives for array([1, -2], "<f4"): a byte string, which Python 3 reads as latin1 text
    data = np.array([1, -2], "<f4").tobytes()
    program = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U" + bytes([len(data)]) + data + b"tb."
    )
    path = tmp_path / "python2.pkl"
    path.write_bytes(program)
    np.testing.assert_array_equal(load_pickle(path), np.array([1, -2], np.float32))


HOSTILE = {
    "os.system": Reduced(os.system, "touch {marker}"),
    "builtins.eval": Reduced(eval, "open('{marker}', 'w')"),
    "builtins.getattr": Reduced(getattr, "text", "upper"),
    "functools.partial": Reduced(partial, os.system, "touch {marker}"),
    "numpy.load": Reduced(np.load, "{marker}"),
    "builtins.exec": {"model": {"weight": [1, Reduced(exec, "open('{marker}', 'w')")]}},
    "encode": Reduced(__import__("_codecs").encode, b"text", "zlib"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("load", [load_pickle, load_torch])
def test_a_pickle_that_calls_anything_is_refused_before_it_runs(tmp_path, name, load):
    marker = tmp_path / "marker"
    data = pickle.dumps(HOSTILE[name], 2)
    path = tmp_path / "weights.pkl"
    path.write_bytes(data)
    called = name.replace("builtins.", "__builtin__.").replace("os.system", "posix.system")
    with pytest.raises(ValueError, match=r"weights.pkl: refused, it would call .*" + called):
        load(path)
    assert not marker.exists()


def test_the_refusal_holds_inside_a_torch_archive(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Reduced(os.system, "true")}, 2))
    with pytest.raises(ValueError, match=r"weights.pth: refused, it would call posix.system"):
        load_torch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([{"an": "object"}], dtype=object), "type 'O8'"),
        (np.array(["text"]), "type 'U4'"),
        (np.zeros(2, dtype=[("a", "f4")]), "damaged"),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_pickle(write(tmp_path / "weights.pkl", content))


def test_an_array_that_claims_more_than_its_bytes(tmp_path):
    data = pickle.dumps(np.zeros(7, np.float32), 2)
    huge = data.replace(b"K\x07\x85", b"J\xff\xff\xff\x7f\x85")
    assert huge != data
    path = tmp_path / "weights.pkl"
    path.write_bytes(huge)
    with pytest.raises(ValueError, match="bytes do not fit its shape"):
        load_pickle(path)


def test_a_list_that_holds_itself(tmp_path):
    circle: list = []
    circle.append(circle)
    with pytest.raises(ValueError, match="in a circle"):
        load_pickle(write(tmp_path / "weights.pkl", circle))


def test_data_outside_the_pickle_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")
    with pytest.raises(ValueError, match="refers to data outside"):
        load_pickle(path)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400), noise=st.binary(max_size=8), place=st.integers(0, 400))
def test_damaged_files_give_a_named_error_or_data(tmp_path_factory, cut, noise, place):
    data = bytearray(pickle.dumps({"model": {"weight": np.arange(12, dtype=np.float32)}}, 2)[: 500 - cut])
    data[place : place + len(noise)] = noise
    path = tmp_path_factory.mktemp("damaged") / "weights.pkl"
    path.write_bytes(bytes(data))
    try:
        load_pickle(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_missing_files_and_foreign_files(tmp_path):
    for load in (load_pickle, load_torch):
        with pytest.raises(FileNotFoundError, match=r"nothing.pth: no such weights file"):
            load(tmp_path / "nothing.pth")
    foreign = tmp_path / "foreign.pth"
    foreign.write_bytes(b"not a pickle at all")
    for load in (load_pickle, load_torch):
        with pytest.raises(ValueError, match=r"foreign.pth: truncated, damaged or no pickle"):
            load(foreign)
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("readme.txt", "a zip")
    with pytest.raises(ValueError, match=r"foreign.pth: a zip archive, but not one of torch.save"):
        load_torch(foreign)


# -- PyTorch's formats, written without PyTorch ------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, "model"])
def test_state_dictionaries_of_torch(tmp_path, legacy, wrapper):
    storages = {
        "0": np.arange(12, dtype=np.float32),
        "1": np.arange(3, dtype=np.int64),
        "2": np.ones(4, np.float16),
    }
    state = collections.OrderedDict(
        weight=Tensor("0", storages["0"], (3, 4), (4, 1)),
        transposed=Tensor("0", storages["0"], (4, 2), (1, 4), offset=4),
        count=Tensor("1", storages["1"]),
        half=Tensor("2", storages["2"]),
    )
    content = {wrapper: state, "epoch": 3} if wrapper else state
    loaded = load_torch(write_torch(tmp_path / "weights.pth", content, storages, legacy))
    assert list(loaded) == list(state)
    np.testing.assert_array_equal(loaded["weight"], storages["0"].reshape(3, 4))
    np.testing.assert_array_equal(loaded["transposed"], storages["0"][4:].reshape(2, 4).T)
    assert loaded["count"].dtype == np.int64 and loaded["half"].dtype == np.float16


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, legacy):
    storage = np.arange(4, dtype=np.float32)
    for shape, steps, offset in (((5,), (1,), 0), ((2, 2), (4, 1), 0), ((1,), (1,), -1), ((2,), (-1,), 3)):
        content = {"weight": Tensor("0", storage, shape, steps, offset)}
        path = write_torch(tmp_path / "weights.pth", content, {"0": storage}, legacy)
        with pytest.raises(ValueError, match=r"weights.pth: damaged: a tensor .* beyond the end"):
            load_torch(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_state_dictionary(tmp_path, legacy):
    storage = np.arange(400, dtype=np.float32)
    path = write_torch(tmp_path / "weights.pth", {"weight": Tensor("0", storage)}, {"0": storage}, legacy)
    data = path.read_bytes()
    for length in (len(data) - 1000, len(data) // 2, 30):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"weights.pth: (truncated|damaged)"):
            load_torch(path)


def test_a_file_without_tensors(tmp_path):
    header = [pickles.LEGACY_MAGIC, pickles.LEGACY_PROTOCOL, {}, {"epoch": 3}, []]
    path = tmp_path / "weights.pth"
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in header))
    with pytest.raises(ValueError, match="holds a dict, but no dictionary of tensors"):
        load_torch(path)
    path.write_bytes(pickle.dumps({"weight": 1}, 2))
    with pytest.raises(ValueError, match="a pickle, but not one of torch.save"):
        load_torch(path)
