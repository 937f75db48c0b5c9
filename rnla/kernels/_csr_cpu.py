"""The loops of `rnla.kernels.csr_matmat`, compiled for the CPU.

Numba has no vector type, and keeps a sum over an inner loop of columns in memory. `_sum_of` makes a function that keeps
the sums of a fixed number of columns in registers: twice the speed for 16 columns.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rnla.kernels._compiled import compiled


def _sum_of(size):
    """Make a function that adds a sparse combination of rows of X to a row of `out`, `size` bytes of columns at once.

    ``add(out, o, data, indices, begin, end, X, first, stride)`` adds ``data[p] * X[indices[p] * stride + first + c]``
    for ``begin <= p < end`` to ``out[o + c]``, for ``0 <= c < size / itemsize``. Arrays are flat; nothing is checked.
    """

    @intrinsic
    def add(typingctx, out, o, data, indices, begin, end, X, first, stride):
        def generate(context, builder, signature, arguments):
            itemsize = out.dtype.bitwidth // 8
            vector = ir.VectorType(context.get_value_type(out.dtype), size // itemsize)

            def entries(position):
                return context.make_array(signature.args[position])(context, builder, arguments[position]).data

            def pointer(data, offset):
                return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())

            target, values, columns, rows = entries(0), entries(2), entries(3), entries(6)
            _, o, _, _, begin, end, _, first, stride = arguments
            target = pointer(target, o)
            total = cgutils.alloca_once_value(builder, builder.load(target, align=itemsize))  # LLVM makes it a register
            with cgutils.for_range_slice(builder, begin, end, ir.Constant(begin.type, 1)) as (p, _):
                column = builder.sext(builder.load(builder.gep(columns, [p])), first.type)
                x = builder.load(pointer(rows, builder.add(builder.mul(column, stride), first)), align=itemsize)
                # The value in the first lane, then that lane in all.
                undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
                value = builder.insert_element(undefined, builder.load(builder.gep(values, [p])), zero)
                everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
                product = builder.fmul(builder.shuffle_vector(value, undefined, everywhere), x, flags=("contract",))
                # "contract": one rounding for product and sum
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            builder.store(builder.load(total), target, align=itemsize)
            return context.get_dummy_value()

        integer = types.intp
        return types.void(out, integer, data, indices, integer, integer, X, integer, integer), generate

    return add


_sum_of_256, _sum_of_128, _sum_of_64, _sum_of_32 = _sum_of(256), _sum_of(128), _sum_of(64), _sum_of(32)
_sum_of_16, _sum_of_8 = _sum_of(16), _sum_of(8)


@compiled()
def add_rows(data, indices, indptr, X, width, out, start, stop):
    """Add rows ``start`` to ``stop`` of the product of a CSR matrix and X to `out`; X and out are flat."""
    size = out.itemsize
    for i in range(start, stop):
        begin, end = indptr[i], indptr[i + 1]
        if begin == end:
            continue
        o, c = i * width, 0
        while (width - c) * size >= 256:
            _sum_of_256(out, o + c, data, indices, begin, end, X, c, width)
            c += 256 // size
        rest = (width - c) * size
        if rest & 128:
            _sum_of_128(out, o + c, data, indices, begin, end, X, c, width)
            c += 128 // size
        if rest & 64:
            _sum_of_64(out, o + c, data, indices, begin, end, X, c, width)
            c += 64 // size
        if rest & 32:
            _sum_of_32(out, o + c, data, indices, begin, end, X, c, width)
            c += 32 // size
        if rest & 16:
            _sum_of_16(out, o + c, data, indices, begin, end, X, c, width)
            c += 16 // size
        if rest & 8:
            _sum_of_8(out, o + c, data, indices, begin, end, X, c, width)
            c += 8 // size
        if rest & 4:  # the last column of an odd number in single precision
            total = out[o + c]
            for p in range(begin, end):
                total += data[p] * X[indices[p] * width + c]
            out[o + c] = total


@compiled(fastmath={"contract"})
def add_rows_complex(data, indices, indptr, X, width, out, start, stop):
    """Add rows of a product like `add_rows`, for complex numbers, which have no vector instructions."""
    for i in range(start, stop):
        o = np.uint64(i * width)  # unsigned: no test for negative indices in the innermost loop
        for p in range(indptr[i], indptr[i + 1]):
            v, x = data[p], np.uint64(indices[p] * width)
            for c in range(np.uint64(width)):
                out[o + c] += v * X[x + c]
