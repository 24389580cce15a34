"""Triton kernels under watch: what the interpreter lets pass and a device does not forgive.

While a computation runs within :func:`sanitised`,

- every address that is read or written lies inside the tensor that the pointer was made from,
- no program stores where another one of its launch stores, reads or adds atomically, nor reads
  where another adds; atomic operations may share an address,
- what a masked load leaves open (no ``other``) is garbage instead of zero,
- programs run in an order drawn from a seed.

Pointers know what they point to because the upper sixteen bits of an address are free: they hold
the number of the operand, which pointer arithmetic carries along. An access is one element, known
by its first byte: two programs that reach an element through types of different sizes are not seen.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

#: Where the number of the operand lies in an address.
SHIFT = 48
_PLACE = np.uint64((1 << SHIFT) - 1)
#: The owner of an element that several programs reach.
_SEVERAL = -1


class SanitiserError(AssertionError):
    """A kernel does what it must not."""


class _Launch:
    """Operands and accesses of one launch."""

    def __init__(self, kernel: str, names: dict[int, str]) -> None:
        self.kernel = kernel
        self.names = names
        self.operands = [""]
        # what is no operand, number 0 and the one behind the last, has no room
        self.starts = np.zeros(2, np.uint64)
        self.ends = np.zeros(2, np.uint64)
        self.accesses: dict[str, list[tuple[int, np.ndarray]]] = {
            "loads": [], "stores": [], "atomics": [],
        }  # fmt: skip
        self.failure: SanitiserError | None = None

    def operand(self, tensor: Any) -> np.uint64:
        """What marks the addresses of a tensor of the launch's arguments."""
        number = len(self.operands)
        start = tensor.data_ptr()
        extents = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in extents)
        end = start + (last + 1) * tensor.element_size() if tensor.numel() else start
        self.operands.append(self.names.get(start, "an operand"))
        self.starts = np.insert(self.starts, number, start).astype(np.uint64)
        self.ends = np.insert(self.ends, number, end).astype(np.uint64)
        return np.uint64(number << SHIFT)

    def visit(self, kind: str, builder: Any, pointers: Any, mask: np.ndarray) -> Any:
        """Note an access; the pointers as plain addresses."""
        from triton.runtime.interpreter import TensorHandle

        number = (pointers.data >> np.uint64(SHIFT)).astype(np.intp)
        place = pointers.data & _PLACE
        width = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        start = self.starts.take(number, mode="clip")
        inside = (place >= start) & (place + width <= self.ends.take(number, mode="clip"))
        if not (inside | ~mask).all():
            at = np.flatnonzero((mask & ~inside).ravel())[0]
            self._outside(kind, builder.grid_idx, number.flat[at], int(place.flat[at]))
        _, ny, nz = builder.grid_dim
        x, y, z = builder.grid_idx
        self.accesses[kind].append(((x * ny + y) * nz + z, place[mask]))
        return TensorHandle(place, pointers.dtype)

    def _outside(self, kind: str, program: Any, number: int, place: int) -> None:
        where = "at an address that no operand has"
        if 0 < number < len(self.operands):
            before = int(self.starts[number]) - place
            behind = place - int(self.ends[number])
            distance = f"{before} bytes before" if before > 0 else f"{behind} bytes behind"
            where = f"{distance} the {'start' if before > 0 else 'end'} of {self.operands[number]}"
        self.failure = SanitiserError(
            f"kernel {self.kernel}, program {program}, {kind} {where}: {_statement()}"
        )
        raise self.failure

    def finish(self, grid: tuple[int, ...]) -> None:
        """Check what the programs did to each other."""
        stored, adds = _owners(self.accesses["stores"]), _owners(self.accesses["atomics"])
        self._refuse("store", "store", grid, stored[0][stored[1] == _SEVERAL], None)
        for kind, verb in (("loads", "load"), ("atomics", "change atomically")):
            self._conflicts(verb, "store", grid, self.accesses[kind], stored)
        self._conflicts("load", "change atomically", grid, self.accesses["loads"], adds)

    def _conflicts(
        self, verb: str, other: str, grid: Any, visits: list[tuple[int, np.ndarray]],
        changed: tuple[np.ndarray, np.ndarray],
    ) -> None:  # fmt: skip
        places, owner = changed
        if not len(places):
            return
        for program, visited in visits:
            if not len(visited) or visited.max() < places[0] or visited.min() > places[-1]:
                continue
            at = np.searchsorted(places, visited).clip(max=len(places) - 1)
            clash = (places[at] == visited) & (owner[at] != program)
            self._refuse(verb, other, grid, visited[clash], program)

    def _refuse(
        self, verb: str, other: str, grid: tuple[int, ...], places: np.ndarray, program: int | None
    ) -> None:
        if not len(places):
            return
        place = int(places[0])
        inside = [
            f"byte {place - int(start)} of {name}"
            for name, start, end in zip(self.operands, self.starts, self.ends, strict=False)
            if start <= place < end
        ]
        who = (
            "two programs"
            if program is None
            else f"program {tuple(int(x) for x in np.unravel_index(program, grid))} and another"
        )
        raise SanitiserError(
            f"kernel {self.kernel}, {who} {verb} and {other} the same element of a launch: "
            f"{inside[0]}"
        )


def _owners(visits: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The addresses in ascending order, each once, and the program that alone reached it."""
    if not visits:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    place = np.concatenate([places for _, places in visits])
    owner = np.repeat([program for program, _ in visits], [len(places) for _, places in visits])
    order = np.lexsort((owner, place))
    place, owner = place[order], owner[order]
    new = place[1:] != place[:-1]
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(place)), bool), new]))
    last = np.concatenate([first[1:], [len(place)]])[: len(first)] - 1
    same = owner[first] == owner[last]
    return place[first], np.where(same, owner[first], _SEVERAL)


def _statement() -> str:
    """The statement of a kernel that is being interpreted."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith("triton."):
            file, line = frame.f_code.co_filename, frame.f_lineno
            return f"{Path(file).name}:{line}: {linecache.getline(file, line).strip()}"
        frame = frame.f_back
    return "unknown statement"


@contextmanager
def sanitised(seed: int) -> Iterator[None]:
    """All checks of this file on what is launched within it."""
    with shuffled(seed), checked():
        yield


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Programs of every launch run in an order drawn from ``seed``."""
    from triton.runtime.interpreter import InterpreterBuilder

    draw = random.Random(seed)
    left: list[tuple[int, ...]] = []
    set_dim, set_index = InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx

    def set_grid_dim(builder: Any, *grid: int) -> None:
        set_dim(builder, *grid)
        left[:] = itertools.product(*(range(size) for size in grid))
        draw.shuffle(left)

    def set_grid_idx(builder: Any, *_: int) -> None:
        set_index(builder, *left.pop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "set_grid_dim", set_grid_dim)
        patch.setattr(InterpreterBuilder, "set_grid_idx", set_grid_idx)
        yield


@contextmanager
def checked() -> Iterator[None]:
    """Every access of what is launched is checked; the order of programs is the usual one."""
    from triton.runtime import interpreter

    builder_type, executor_type = interpreter.InterpreterBuilder, interpreter.GridExecutor
    run, convert = executor_type.__call__, interpreter._implicit_cvt
    current: list[_Launch] = []

    def launch(executor: Any, *arguments: Any, **options: Any) -> None:
        known = inspect.signature(executor.fn).parameters
        given = inspect.getcallargs(
            executor.fn, *arguments, **{k: v for k, v in options.items() if k in known}
        )
        names: dict[int, str] = {}
        for name, value in given.items():
            if hasattr(value, "data_ptr"):
                start = value.data_ptr()
                names[start] = f"{names[start]} or {name}" if start in names else name
        current.append(_Launch(executor.fn.__name__, names))
        try:
            run(executor, *arguments, **options)
            current[-1].finish(interpreter.interpreter_builder.grid_dim)
        except interpreter.InterpreterError:
            if current[-1].failure is None:
                raise
            raise current[-1].failure from None
        finally:
            current.pop()

    def marked(value: Any) -> Any:
        converted = convert(value)
        if hasattr(value, "data_ptr"):
            mark = current[-1].operand(interpreter._unwrap_tensor(value))
            converted.handle.data = converted.handle.data | mark
        return converted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor_type, "__call__", launch)
        patch.setattr(interpreter, "_implicit_cvt", marked)
        for name, method in _watched(builder_type, current).items():
            patch.setattr(builder_type, name, method)
        yield


def _watched(builder_type: Any, current: list[_Launch]) -> dict[str, Any]:
    """The operations of the interpreter that reach memory, which see plain addresses."""
    load, store = builder_type.create_masked_load, builder_type.create_masked_store
    add, exchange = builder_type.create_atomic_rmw, builder_type.create_atomic_cas

    def masked_load(builder: Any, pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
        if other is None and not mask.data.all():
            other = _garbage(pointers)
        plain = current[-1].visit("loads", builder, pointers, mask.data)
        return load(builder, plain, mask, other, *options)

    def masked_store(builder: Any, pointers: Any, value: Any, mask: Any, *options: Any) -> Any:
        plain = current[-1].visit("stores", builder, pointers, mask.data)
        return store(builder, plain, value, mask, *options)

    def atomic_rmw(builder: Any, kind: Any, pointers: Any, value: Any, mask: Any, *options: Any):
        plain = current[-1].visit("atomics", builder, pointers, mask.data)
        return add(builder, kind, plain, value, mask, *options)

    def atomic_cas(builder: Any, pointers: Any, *options: Any) -> Any:
        every = np.ones(pointers.data.shape, bool)
        plain = current[-1].visit("atomics", builder, pointers, every)
        return exchange(builder, plain, *options)

    return {
        "create_masked_load": masked_load,
        "create_masked_store": masked_store,
        "create_atomic_rmw": atomic_rmw,
        "create_atomic_cas": atomic_cas,
    }


def _garbage(pointers: Any) -> Any:
    """All bits set: no number, or -1."""
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    element = pointers.get_element_ty()
    kind = _get_np_dtype(element)
    bits = np.full((*pointers.data.shape, kind.itemsize), 255, np.uint8)
    values = bits.view(kind)[..., 0] if kind != np.bool_ else np.ones(pointers.data.shape, bool)
    return TensorHandle(values, element)
