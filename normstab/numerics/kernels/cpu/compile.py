"""How kernels are compiled: serial, without the interpreter lock, cached on disk where that is possible.

    kernel      called from Python with raw addresses: machine code of its own, cached
      outside   a part of which a kernel has one copy, from however many places it is called
      device    a part that is inlined wherever it is called

Fast-math is never on: every float operation is the IEEE one, and none is contracted into another.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import cgutils, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import intrinsic

__all__ = [
    "as_float32",
    "as_float64",
    "as_int64",
    "as_uint32",
    "device",
    "is_kept",
    "kernel",
    "left32",
    "outside",
    "right32",
    "view",
]

HASH_BYTES = 32  # of a cached file: the sha256 of what follows it

# Of every kernel and part; the entry that C code would call is left out, as it takes time to compile.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def kernel(function: Callable[..., Any]) -> Any:
    """Return `function` compiled on first call and cached on disk; only in memory where no directory is writable."""
    compiled: Any = numba.njit(**OPTIONS)(function)
    with contextlib.suppress(RuntimeError, OSError):  # no writable cache directory at all
        compiled._cache = SourceCache(function)
    return compiled


def is_kept(kernel: Any) -> bool:
    """Whether machine code of a kernel is on disk, for whichever types and processor."""
    cache = kernel._cache
    found: bool = isinstance(cache, SourceCache) and cache._cache_file.is_kept()  # type: ignore[attr-defined]
    return found


def device(function: Callable[..., Any]) -> Any:
    """Return `function` compiled into whichever kernel calls it."""
    return _part(function, is_inlined=True)


def outside(function: Callable[..., Any]) -> Any:
    """Return `function` compiled on its own: what is called from many places of kernels, without a copy in each.

    A function that says nothing would inherit being inlined from the first device function that calls it.
    """
    return _part(function, is_inlined=False)


def _part(function: Callable[..., Any], *, is_inlined: bool) -> Any:
    """Return a dispatcher for use inside kernels: it has no entry from Python.

    It compiles once per types: a constant argument would make a copy for that constant. Where the function is
    inlined, LLVM has the constant all the same.
    """
    options = OPTIONS | {"forceinline": is_inlined, "no_cpython_wrapper": True, "pipeline_class": PartCompiler}
    compiled: Any = numba.njit(**options)(function)
    resolve = compiled.get_call_template

    def resolve_any(arguments: Any, named: Any) -> Any:
        return resolve([types.unliteral(argument) for argument in arguments], named)

    compiled.get_call_template = resolve_any
    return compiled


class PartCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler for a part: what it makes is linked into kernels, and is no machine code by itself.

    Numba would optimize and emit every part anew, each with all that it calls: a third of the time of a first use.
    """

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile `func` into a library of its own kind."""
        self.state.library = PartLibrary(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


class PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a part, with what it calls: the kernel that links it optimizes and emits all of it, once."""

    @property
    def codegen(self) -> Any:
        """What has no environment to set: there is no machine code that would read it."""
        return Unset(self._codegen)

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: no address."""
        self._ensure_finalized()
        return 0

    def _optimize_final_module(self) -> None:
        """Leave that to the kernel."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class Unset:
    """Numba's code generator, but for `set_env`."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def set_env(self, name: str, environment: Any) -> None:
        """Do nothing."""


class SourceCache(FunctionCache):
    """Numba's cache of one function, outdated by a change in its module or in those of the parts it uses.

    It knows sources by their bytes, not by their place and time: in a folder that NUMBA_CACHE_DIR names, every
    installation of the same sources finds what another one compiled, a later checkout too.
    A file that cannot be read or written costs a compilation, never an error.
    """

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        chosen = numba.config.CACHE_DIR  # type: ignore[attr-defined]
        if chosen:
            self._cache_path = str(Path(chosen) / "normstab")
        stamp = (numba.__version__, _digest_of_sources(py_func))
        self._cache_file = _FilePerKey(self._cache_path, self._impl.filename_base, stamp, is_shared=bool(chosen))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the cached code for the signature, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # bytes of another numba or LLVM: whatever taking them apart meets
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the code for the signature where the directory is writable."""
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()


class _FilePerKey(IndexDataCacheFile):  # type: ignore[misc]
    """Compiled code in one file per signature, processor and source, whose name says which; its hash comes first.

    Numba's own index numbers the files: two processes that write at once can take the same number, and the
    index of one then leads to the code of the other.
    """

    def __init__(self, path: str, base: str, stamp: object, *, is_shared: bool = False) -> None:
        super().__init__(path, base, stamp)
        self._base, self._of_source, self._is_shared = base, f"{base}.{_short_digest(stamp)}", is_shared

    def save(self, key: object, data: Any) -> None:
        """Write the code for `key`, and delete what older sources left; in a shared folder others may be using it."""
        Path(self._cache_path).mkdir(parents=True, exist_ok=True)
        self._save_data(self._name_of(key), data)
        if self._is_shared:
            return
        for file in Path(self._cache_path).glob(f"{glob.escape(self._base)}.*.nbc"):
            if not file.name.startswith(self._of_source):
                file.unlink(missing_ok=True)

    def is_kept(self) -> bool:
        """Whether there is code for any key."""
        return any(Path(self._cache_path).glob(f"{glob.escape(self._of_source)}.*.nbc"))

    def load(self, key: object) -> Any:
        """Return the code for `key`, or None."""
        path = Path(self._data_path(self._name_of(key)))
        content = path.read_bytes() if path.is_file() else b""
        # Damaged bytes are not to be unpickled: what came out might be run.
        if hashlib.sha256(content[HASH_BYTES:]).digest() != content[:HASH_BYTES]:
            return None
        return pickle.loads(content[HASH_BYTES:])

    def _dump(self, data: object) -> bytes:
        content: bytes = super()._dump(data)
        return hashlib.sha256(content).digest() + content

    def _save_data(self, name: str, data: object) -> None:
        path = Path(self._data_path(name))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        super()._save_data(name, data)

    def _name_of(self, key: object) -> str:
        return f"{self._of_source}.{_short_digest(key)}.nbc"


def _short_digest(value: object) -> str:
    """Return 16 hexadecimal digits of the hash of what `value` prints as."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _digest_of_sources(py_func: Callable[..., Any]) -> str:
    """Return a hash of the sources of every module of ours that `py_func` can reach: a constant is compiled in, too."""
    # Through imports of imports: an inlined part has parts of its own.
    found: dict[str, bytes] = {}
    pending = [py_func.__module__]
    while pending:
        name = pending.pop()
        if name not in found:
            found[name], imported = source_of(name)
            pending += imported
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()


# A module of ours that another one imports as it is loaded, and so is loaded itself.
IMPORTED = re.compile(rb"^from (normstab[\w.]*) import", re.MULTILINE)


@functools.cache
def source_of(name: str) -> tuple[bytes, list[str]]:
    """Return the hash of a loaded module's source, and the modules of ours that it imports."""
    source = Path(sys.modules[name].__file__ or "").read_bytes()
    return hashlib.sha256(source).digest(), [found.decode() for found in IMPORTED.findall(source)]


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """Return the integer `address` as a void pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _bits_cast(source: Any, target: Any) -> Any:
    """Return an intrinsic that reads the bits of a `source` scalar as a `target` scalar."""

    @intrinsic
    def cast_bits(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return cast_bits


def _shift32(direction: str) -> Any:
    """Return an intrinsic that shifts a uint32 within 32 bits; numba's own would widen it to 64."""

    @intrinsic
    def shift(typing_context: Any, value: Any, places: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, direction)(*arguments)

        return types.uint32(types.uint32, types.uint32), generate

    return shift


left32, right32 = _shift32("shl"), _shift32("lshr")  # by 0 .. 31 places
# Reinterpretations: the same bits as another type.
as_float64 = _bits_cast(types.int64, types.float64)
as_int64 = _bits_cast(types.float64, types.int64)
as_float32 = _bits_cast(types.uint32, types.float32)
as_uint32 = _bits_cast(types.float32, types.uint32)


@device
def view(address, size, dtype):  # type: ignore[no-untyped-def]
    """Return `size` items of `dtype` at `address` as an array that owns nothing."""
    return numba.carray(_pointer(address), size, dtype)  # type: ignore[attr-defined,call-arg]
