"""CIFAR's python batches, read without trusting them: a pickle is a program, and numpy believes what one tells it.

Of all that a pickle can ask for, plain containers, texts, integers and arrays of bytes or 64-bit integers come out;
an array's memory is made here, of the size that its shape needs, never by numpy's own unpickling.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from normstab.errors import NormstabError
from normstab.experiment.records.files import read_plain_file

__all__ = ["read_batch"]

MOST_BYTES = 2**30
"""The real batches have 31 MB (CIFAR-10) and 154 MB (CIFAR-100)."""


MOST_MADE = 64
"""Objects in a batch that are neither containers, texts nor numbers; the real ones have three."""


def read_batch(path: Path, label_key: bytes, *, pixels: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the rows of `pixels` bytes, and the labels, in the batch at `path`.

    Raises NormstabError, naming the file, for one that cannot be read or holds anything else.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise NormstabError(f"{path}: larger than {MOST_BYTES} bytes; not a python batch of CIFAR")
        content = read_plain_file(path)
        _check_program(content)
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except OSError as error:
        raise NormstabError(f"{path}: cannot read: {error.strerror or error}") from error
    except Exception as error:  # an unpickler raises whatever the bytes lead it to
        raise NormstabError(f"{path}: not a python batch of CIFAR: {type(error).__name__}: {error}") from error
    if not isinstance(batch, dict):
        raise NormstabError(f"{path}: not a python batch of CIFAR: expected a dict")
    rows = _array(batch.get(b"data"))
    if rows is None or rows.dtype != np.uint8 or rows.size == 0 or rows.size % pixels:
        raise NormstabError(f"{path}: not a python batch of CIFAR: b'data' is not rows of {pixels} bytes")
    labels = _labels(batch.get(label_key))
    if labels is None:
        raise NormstabError(f"{path}: not a python batch of CIFAR: {label_key!r} is not a list of whole numbers")
    return rows.reshape(-1, pixels), labels


def _check_program(content: bytes) -> None:
    """Raise UnpicklingError for a pickle that would take far more memory than its file has bytes.

    An index of its memo, or the length of a bytearray, is a number in the file, and room is made for it at once.
    """
    made, stored = 0, 0
    for operation, argument, _ in pickletools.genops(content):  # raises ValueError at what is no pickle
        made += operation.name in ("REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX")
        if "PUT" in operation.name or operation.name == "MEMOIZE":
            stored += 1
            if isinstance(argument, int) and not 0 <= argument <= 2 * stored + MOST_MADE:
                raise pickle.UnpicklingError("an index beyond everything that was stored")
        if made > MOST_MADE:
            raise pickle.UnpicklingError(f"more than {MOST_MADE} objects")


def _array(found: Any) -> NDArray[Any] | None:
    """Return the array that was unpickled, or None for anything else."""
    return found.array if isinstance(found, _Array) else None


def _labels(found: Any) -> NDArray[np.int64] | None:
    """Return labels, given as a list or an array, as integers; None where they are none."""
    array = _array(found)
    if array is not None:
        return array.astype(np.int64) if array.ndim == 1 else None
    # A label is one byte, here and in the binary form; a bool is no label.
    if not isinstance(found, list) or not all(type(label) is int and 0 <= label < 256 for label in found):
        return None
    return np.array(found, np.int64)


class _Dtype:
    """Stands for numpy.dtype: the name alone is kept, what else the pickle says of it is not believed."""

    KNOWN: ClassVar[dict[str, type[np.uint8] | type[np.int64]]] = {"u1": np.uint8, "i8": np.int64}

    def __init__(self, name: Any = "", *rest: Any) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("|", "<", "=", b"|", b"<", b"="):
            raise pickle.UnpicklingError("arrays of another byte order have no place in an image batch")

    @property
    def plain(self) -> type[np.uint8] | type[np.int64]:
        """The type of the elements; raises UnpicklingError for any but uint8 and int64."""
        known = self.KNOWN.get(self.name) if isinstance(self.name, str) else None
        if known is None:
            raise pickle.UnpicklingError("arrays of anything but uint8 and int64 have no place in an image batch")
        return known


class _Array:
    """Stands for numpy.ndarray while unpickling; `array` is made from bytes of exactly the right number."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = _made(content, dtype, shape, "F" if is_fortran else "C")


def _made(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """Return the array of these bytes; raise UnpicklingError where they are not as many as its shape says."""
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise pickle.UnpicklingError("not the state of an array")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 4:
        raise pickle.UnpicklingError("not the shape of an array")
    plain = dtype.plain
    if math.prod(shape) * np.dtype(plain).itemsize != len(content):
        raise pickle.UnpicklingError(f"{len(content)} bytes are not an array of shape {shape}")
    return np.frombuffer(bytes(content), plain).reshape(shape, order=order)


def _reconstruct(*_: Any) -> _Array:
    """Stand for numpy's function of this name: the array comes with its state."""
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Stand for numpy's function of this name, which protocol 5 calls."""
    found = _Array()
    found.array = _made(content, dtype, shape, order)
    return found


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stand for codecs.encode, by which protocol 2 writes bytes: latin-1 only, other codecs may do anything."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
        raise pickle.UnpicklingError("only latin-1 texts have a place in an image batch")
    return text.encode("latin-1")


class _Unpickler(pickle.Unpickler):
    """Gives a pickle our stand-ins under numpy's names, and nothing else: no class or function of its choice."""

    STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for what a pickled array needs; refuse the rest."""
        if (module, name) not in self.STAND_INS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in an image batch")
        return self.STAND_INS[module, name]
