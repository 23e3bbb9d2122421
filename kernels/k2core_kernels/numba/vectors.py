"""Vectors of 16 float32 or int32 as Numba types, made of LLVM's target-independent vector operations.

The same source runs on AVX-512, AVX2, SSE2 or NEON; LLVM splits a vector where registers are shorter. Every operation is exact
IEEE float32 per lane and lane sums have one fixed tree, so results have the same bits on every host.

    Float16, Int16                  the two types (16 lanes, not 16 bits)
    load, load_words, store         from and to flat arrays; `load_at` takes an address
    store_quarter0 … store_quarter3 lanes 0 to 3, 4 to 7, and so on
    value_at, put                   one value of a flat array, and into it; `long_at`, `put_at` take an address
    splat, broadcast                one value in all lanes
    fma, add, subtract, multiply, divide, maximum
    first_lanes, quarters           lanes of one vector and of another; four values in four lanes each
    rotate                          pairs of lanes by angles
    low_bfloat16, high_bfloat16     the two bfloat16 halves of each 32-bit lane, exactly upcast
    nibble0 … nibble7               signed 4-bit field of each 32-bit lane, as float32
    exponential                     e**x, relative error below 3 unit roundoffs; `exponential_of_negative` for x <= 0
    sum_lanes, max_lanes            fixed tree; `sum_lanes_of_sixteen` has the same sums of 16 vectors at once

Indices are not wrapped: a negative one is an error here, and Numba's test for it would keep loops from being vectors.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import config
from numba.extending import intrinsic, models, register_model

LANES = 16

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_INTS, _FLOATS, _SHORTS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES), ir.VectorType(_I16, LANES)


class Vector(types.Type):  # type: ignore[misc]  # numba has no type information
    """The Numba type of a vector of 16 lanes."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)


Float16 = Vector("k2core float32 x 16")
Int16 = Vector("k2core int32 x 16")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, front_end: Any) -> None:
        super().__init__(manager, front_end, _FLOATS if front_end == Float16 else _INTS)


def _constant(vector: ir.VectorType, value: float | int) -> ir.Constant:
    return ir.Constant(vector, [value] * LANES)


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to array[index] of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    step = builder.mul(index, ir.Constant(index.type, array_type.dtype.bitwidth // 8))
    return builder.gep(builder.bitcast(data, _I8.as_pointer()), [step], source_etype=_I8)


def _splatted(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, _constant(_INTS, 0))


def _read(builder: Any, pointer: Any, vector: ir.VectorType) -> Any:
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4 if vector is not _SHORTS else 2, typ=vector)


def _write(builder: Any, pointer: Any, value: Any) -> None:
    builder.store(value, builder.bitcast(pointer, _FLOATS.as_pointer()), align=4)


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """16 values of a flat float32 array from *index* on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, _element(context, builder, signature.args[0], *arguments), _FLOATS)

    return Float16(array, types.intp), generate


@intrinsic
def load_words(typing: Any, array: Any, index: Any) -> Any:
    """16 words of a flat uint32 array from *index* on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, _element(context, builder, signature.args[0], *arguments), _INTS)

    return Int16(array, types.intp), generate


@intrinsic
def load_bfloat16(typing: Any, array: Any, index: Any) -> Any:
    """16 bfloat16 values, kept as uint16, of a flat array from *index* on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shorts = _read(builder, _element(context, builder, signature.args[0], *arguments), _SHORTS)
        return builder.bitcast(builder.shl(builder.zext(shorts, _INTS), _constant(_INTS, 16)), _FLOATS)

    return Float16(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write 16 values into a flat float32 array from *index* on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _write(builder, _element(context, builder, signature.args[0], *arguments[:2]), arguments[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, Float16), generate


def _store_of_four(start: int) -> Any:
    @intrinsic
    def operation(typing: Any, array: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = ir.Constant(ir.VectorType(_I32, 4), list(range(start, start + 4)))
            part = builder.shuffle_vector(arguments[2], arguments[2], lanes)
            pointer = _element(context, builder, signature.args[0], *arguments[:2])
            builder.store(part, builder.bitcast(pointer, part.type.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(array, types.intp, Float16), generate

    return operation


store_quarter0, store_quarter1, store_quarter2, store_quarter3 = (_store_of_four(start) for start in (0, 4, 8, 12))


@intrinsic
def value_at(typing: Any, array: Any, index: Any) -> Any:
    """One value of a flat float32 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], *arguments)
        return builder.load(builder.bitcast(pointer, _F32.as_pointer()), align=4, typ=_F32)

    return types.float32(array, types.intp), generate


@intrinsic
def put(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write one value into a flat float32 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], builder.bitcast(pointer, _F32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), generate


@intrinsic
def load_at(typing: Any, address: Any) -> Any:
    """16 float32 values at a memory address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, builder.inttoptr(arguments[0], _FLOATS.as_pointer()), _FLOATS)

    return Float16(types.int64), generate


@intrinsic
def long_at(typing: Any, address: Any) -> Any:
    """The int64 at a memory address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        long = ir.IntType(64)
        return builder.load(builder.inttoptr(arguments[0], long.as_pointer()), align=8, typ=long)

    return types.int64(types.int64), generate


@intrinsic
def put_at(typing: Any, address: Any, value: Any) -> Any:
    """Write one float32 at a memory address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], _F32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def pointer_at(typing: Any, address: Any) -> Any:
    """The address as an untyped pointer, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], _I8.as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """One float32 in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splatted(builder, arguments[0], _FLOATS)

    return Float16(types.float32), generate


@intrinsic
def broadcast(typing: Any, array: Any, index: Any) -> Any:
    """Element *index* of a flat float32 array in all lanes; the index is not wrapped."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], *arguments)
        return _splatted(builder, builder.load(builder.bitcast(pointer, _F32.as_pointer()), align=4, typ=_F32), _FLOATS)

    return Float16(array, types.intp), generate


def _function(builder: Any, name: str, result: Any, parameters: list[Any]) -> Any:
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, parameters), name)


def _fused(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    function = _function(builder, "llvm.fma.v16f32", _FLOATS, [_FLOATS] * 3)
    return builder.call(function, [left, right, addend])


@intrinsic
def fma(typing: Any, left: Any, right: Any, addend: Any) -> Any:
    """left * right + addend with one rounding."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fused(builder, *arguments)

    return Float16(Float16, Float16, Float16), generate


def _binary(build: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic
    def operation(typing: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return build(builder, *arguments)

        return Float16(Float16, Float16), generate

    return operation


def _larger(builder: Any, left: Any, right: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


@intrinsic
def first_lanes(typing: Any, count: Any, vector: Any, other: Any) -> Any:
    """The first *count* lanes of *vector*, the others of *other*."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = builder.trunc(arguments[0], _I32)
        numbers = ir.Constant(_INTS, list(range(LANES)))
        return builder.select(builder.icmp_signed("<", numbers, _splatted(builder, count, _INTS)), arguments[1], arguments[2])

    return Float16(types.int64, Float16, Float16), generate


@intrinsic
def quarters(typing: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """Four float32, each in four lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.Constant(_FLOATS, ir.Undefined)
        for lane, argument in enumerate(arguments):
            vector = builder.insert_element(vector, argument, ir.Constant(_I32, lane))
        return builder.shuffle_vector(vector, vector, ir.Constant(_INTS, [lane // 4 for lane in range(LANES)]))

    return Float16(*[types.float32] * 4), generate


@intrinsic
def rotate(typing: Any, vector: Any, cosine: Any, sine: Any, index: Any) -> Any:
    """Pairs of lanes (a, b) as (a c - b s, a s + b c), with 8 cosines and sines of flat float32 arrays from *index* on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, at = arguments[0], arguments[3]
        eight = ir.VectorType(_F32, 8)
        twice = ir.Constant(_INTS, [lane // 2 for lane in range(LANES)])
        tables = []
        for table_type, table in zip(signature.args[1:3], arguments[1:3], strict=True):
            pointer = builder.bitcast(_element(context, builder, table_type, table, at), eight.as_pointer())
            values = builder.load(pointer, align=4, typ=eight)
            tables.append(builder.shuffle_vector(values, values, twice))
        swapped = builder.shuffle_vector(value, value, ir.Constant(_INTS, [lane ^ 1 for lane in range(LANES)]))
        straight, crossed = builder.fmul(value, tables[0]), builder.fmul(swapped, tables[1])
        odd = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [lane % 2 for lane in range(LANES)])
        return builder.select(odd, builder.fadd(straight, crossed), builder.fsub(straight, crossed))

    return Float16(Float16, cosine, sine, types.intp), generate


add = _binary(lambda builder, left, right: builder.fadd(left, right))
subtract = _binary(lambda builder, left, right: builder.fsub(left, right))
multiply = _binary(lambda builder, left, right: builder.fmul(left, right))
divide = _binary(lambda builder, left, right: builder.fdiv(left, right))
maximum = _binary(_larger)


def _from_words(build: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def operation(typing: Any, words: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return build(builder, arguments[0])

        return Float16(Int16), generate

    return operation


def _looks_up() -> bool:
    """Whether code is made for this host and it picks 16 values out of 16 in one instruction."""
    # numba states no host features to an intrinsic; CPU_NAME is set where code for another CPU is asked for
    return not config.CPU_NAME and bool(binding.get_host_cpu_features().get("avx512f", False))


def _signed_nibble(field: int) -> Any:
    def build(builder: Any, words: Any) -> Any:
        if _looks_up():
            # the lowest four bits of a lane choose; one token's product of the embedded model's experts: 1.23 us by conversion,
            # 0.78 us by look-up, on Zen 4
            low = builder.lshr(words, _constant(_INTS, 4 * field)) if field else words
            table = ir.Constant(_FLOATS, [float(value if value < 8 else value - 16) for value in range(16)])
            return builder.call(_function(builder, "llvm.x86.avx512.permvar.sf.512", _FLOATS, [_FLOATS, _INTS]), [table, low])
        top = builder.shl(words, _constant(_INTS, 28 - 4 * field)) if field < 7 else words
        return builder.sitofp(builder.ashr(top, _constant(_INTS, 28)), _FLOATS)

    return _from_words(build)


low_bfloat16 = _from_words(lambda builder, words: builder.bitcast(builder.shl(words, _constant(_INTS, 16)), _FLOATS))
high_bfloat16 = _from_words(lambda builder, words: builder.bitcast(builder.and_(words, _constant(_INTS, 0xFFFF0000)), _FLOATS))
nibble0, nibble1, nibble2, nibble3, nibble4, nibble5, nibble6, nibble7 = (_signed_nibble(field) for field in range(8))

# ln 2 in two parts: the first has 9 trailing zero bits, so n * part is exact for |n| <= 150; then 1/k! of the Taylor series:
# on |r| <= ln(2)/2 its remainder after r**7 is below 0.35**8/8! = 5.6e-9, a tenth of float32's unit roundoff.
_LN2_HIGH, _LN2_LOW, _LOG2_E = 0.693359375, -2.12194440e-4, 1.44269504088896341
_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds to the nearest integer, which then sits in the low bits


def _single(value: float) -> float:
    return float(types.float32.cast_python_value(value))


def _exponential(builder: Any, x: Any, *, any_sign: bool) -> Any:
    def constant(value: float) -> Any:
        return _constant(_FLOATS, _single(value))

    low, high = constant(-87.0), constant(88.0)
    clamped = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    if any_sign:
        clamped = builder.select(builder.fcmp_ordered(">", x, high), high, clamped)
    shifted = builder.fadd(builder.fmul(clamped, constant(_LOG2_E)), constant(_MAGIC))
    whole = builder.fsub(shifted, constant(_MAGIC))
    rest = _fused(builder, whole, constant(-_LN2_HIGH), clamped)
    rest = _fused(builder, whole, constant(-_LN2_LOW), rest)
    series = constant(_TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        series = _fused(builder, series, rest, constant(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _INTS), _constant(_INTS, 23))  # the integer, moved to the exponent's place
    scaled = builder.bitcast(builder.add(builder.bitcast(series, _INTS), exponent), _FLOATS)
    scaled = builder.select(builder.fcmp_ordered("<", x, low), constant(0.0), scaled)
    if any_sign:
        scaled = builder.select(builder.fcmp_ordered(">", x, high), constant(float("inf")), scaled)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, scaled)


@intrinsic
def exponential(typing: Any, value: Any) -> Any:
    """e**x per lane: 0 below -87, infinity above 88, NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _exponential(builder, arguments[0], any_sign=True)

    return Float16(Float16), generate


@intrinsic
def exponential_of_negative(typing: Any, value: Any) -> Any:
    """The same where no lane is positive, in less time."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _exponential(builder, arguments[0], any_sign=False)

    return Float16(Float16), generate


def _tree(build: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic
    def reduction(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = arguments[0]
            for half in (8, 4, 2, 1):
                lanes = [lane if lane < half else 0 for lane in range(half)]
                narrow = ir.VectorType(_I32, half)
                first = builder.shuffle_vector(vector, vector, ir.Constant(narrow, lanes))
                second = builder.shuffle_vector(vector, vector, ir.Constant(narrow, [lane + half for lane in range(half)]))
                vector = build(builder, first, second)
            return builder.extract_element(vector, ir.Constant(_I32, 0))

        return types.float32(Float16), generate

    return reduction


sum_lanes = _tree(lambda builder, left, right: builder.fadd(left, right))
max_lanes = _tree(_larger)


@intrinsic
def sum_lanes_of_sixteen(typing: Any, vectors: Any) -> Any:
    """Lane i is `sum_lanes` of the i-th of a tuple of 16 vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # a step adds the halves of two vectors into one, so that no lane idles: of each group of lanes the lower part is the
        # vector's of lower number
        found = [builder.extract_value(arguments[0], i) for i in range(LANES)]
        for half in (8, 4, 2, 1):
            lower = [lane // half % 2 * LANES + lane // (2 * half) * 2 * half + lane % half for lane in range(LANES)]
            first, second = ir.Constant(_INTS, lower), ir.Constant(_INTS, [lane + half for lane in lower])
            pairs = list(zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True))
            found = [builder.fadd(*(builder.shuffle_vector(*pair, lanes) for lanes in (first, second))) for pair in pairs]
        return found[0]

    return Float16(types.UniTuple(Float16, LANES)), generate
