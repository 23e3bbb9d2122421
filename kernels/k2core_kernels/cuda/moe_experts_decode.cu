// Routed experts for few tokens, from packed INT4 weights, each weight read once per token.
//
//     inner[p, n] = silu(sum_k gate[e, n, k] x[t, k]) * sum_k up[e, n, k] x[t, k]      p = (t, slot), e = expert_ids[p]
//     y[t, m]     = sum over slots, in order, of weights[t, slot] * sum_n down[e, m, n] inner[p, n]
//
// Weights lie as in the checkpoint: rows of int32 words of eight codes (nibble i of a word is column 8 w + i, stored as code + 8)
// and one bfloat16 scale per GROUP columns. With few tokens nearly every pair of token and slot has an expert of its own, so
// pairs are not grouped. All sums are float32 and weights exactly code * scale.
//
// A warp takes a few rows and walks along them, a lane taking Words at a time: 128 bits where a group is a multiple of 32
// columns, so that they share one scale, else one word. The next ones are fetched before the present ones are used.
//
// Vectors are float32 in the order in which lanes meet them: value 4 q + v of chunk c (a chunk is what Words hold) is element v of
// float4 number q * chunks + c, so that neighbouring lanes read neighbouring float4. `gate_up_decode` writes `inner` so.
//
// GROUP     columns per scale, a multiple of 8
// ROUNDED   1: inner activations are rounded to bfloat16 (the caller rounds x); 0: float32 throughout
//
// Nothing is included. What is CUDA's own here, beside the grid, is float4, uint4, __ldcs, __shfl_xor_sync and the casts by bits.

#ifndef GROUP
#define GROUP 32
#endif
#ifndef ROUNDED
#define ROUNDED 0
#endif
static_assert(GROUP > 0 && GROUP % 8 == 0, "GROUP is a multiple of 8");

#if GROUP % 32 == 0
typedef uint4 Words;
#else
typedef unsigned Words;
#endif

// Blocks on a multiprocessor: 20 warps, with 96 registers a thread, wait for 40 KiB together; sm_80 needs more registers, and
// with half the bandwidth fewer warps.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int BLOCKS = 4;
#else
constexpr int BLOCKS = 5;
#endif

constexpr int WORDS = sizeof(Words) / 4;
constexpr int QUADS = 2 * WORDS;      // float4 that meet Words
constexpr int LANES = 32, WARPS = 4;  // of a block
constexpr int GATE_UP_ROWS = 2;       // of each of the two matrices that a warp takes: four streams
constexpr int DOWN_ROWS = 4;          // that a warp takes: four streams
static_assert(8 % GATE_UP_ROWS == 0 && 8 % DOWN_ROWS == 0, "sizes are multiples of 8: no warp has a part of its rows");

__device__ inline unsigned word(const uint4& words, int place) {
    return place == 0 ? words.x : place == 1 ? words.y : place == 2 ? words.z : words.w;
}

__device__ inline unsigned word(const unsigned& words, int) { return words; }

// The code of the nibble at bit PLACE, where it stands: the bits 0x4B000000 | m are the float 2^23 + m, too large by 2^PLACE
// times the nibble; taking the power of two back and subtracting the offset is exact, and one instruction.
template <int PLACE>
__device__ inline float code(unsigned half) {
    const float whole = __uint_as_float((half & (15u << PLACE)) | 0x4B000000u);
    return fmaf(whole, 1.0f / (1 << PLACE), -(8388608.0f / (1 << PLACE) + 8.0f));
}

// total + the eight codes of a word times the eight values they meet.
__device__ inline float eight(unsigned packed, const float4& low, const float4& high, float total) {
    const unsigned upper = packed >> 16;
    total = fmaf(code<0>(packed), low.x, total);
    total = fmaf(code<4>(packed), low.y, total);
    total = fmaf(code<8>(packed), low.z, total);
    total = fmaf(code<12>(packed), low.w, total);
    total = fmaf(code<0>(upper), high.x, total);
    total = fmaf(code<4>(upper), high.y, total);
    total = fmaf(code<8>(upper), high.z, total);
    return fmaf(code<12>(upper), high.w, total);
}

__device__ inline float from_bfloat16(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

// The nearest bfloat16, ties to even; NaN stays.
__device__ inline float to_bfloat16(float x) {
    const unsigned bits = __float_as_uint(x);
    return x == x ? __uint_as_float((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u) : x;
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int offset = LANES / 2; offset; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    return x;
}

// This lane's share of the products of one vector with ROWS neighbouring rows of each matrix; sums[m * ROWS + r].
template <int MATRICES, int ROWS>
__device__ inline void products(const Words* const (&matrix)[MATRICES], const unsigned short* const (&scales)[MATRICES],
                                const float4* __restrict__ vector, int chunks, int lane, float (&sums)[MATRICES * ROWS]) {
    constexpr int STREAMS = MATRICES * ROWS;
    const int groups = chunks * WORDS / (GROUP / 8);
    Words next[STREAMS];
#pragma unroll
    for (int s = 0; s < STREAMS; ++s) {
        sums[s] = 0.0f;
        if (lane < chunks) next[s] = __ldcs(matrix[s / ROWS] + s % ROWS * chunks + lane);
    }
#pragma unroll 1
    for (int chunk = lane; chunk < chunks; chunk += LANES) {
        Words now[STREAMS];
        float scale[STREAMS], part[STREAMS];
#pragma unroll
        for (int s = 0; s < STREAMS; ++s) {
            now[s] = next[s];
            part[s] = 0.0f;
            scale[s] = from_bfloat16(scales[s / ROWS][s % ROWS * groups + chunk * WORDS / (GROUP / 8)]);
            if (chunk + LANES < chunks) next[s] = __ldcs(matrix[s / ROWS] + s % ROWS * chunks + chunk + LANES);
        }
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            const float4 low = vector[2 * w * chunks + chunk], high = vector[(2 * w + 1) * chunks + chunk];
#pragma unroll
            for (int s = 0; s < STREAMS; ++s) part[s] = eight(word(now[s], w), low, high, part[s]);
        }
#pragma unroll
        for (int s = 0; s < STREAMS; ++s) sums[s] = fmaf(part[s], scale[s], sums[s]);
    }
}

// Inner activations of each pair. Grid: (inner / (WARPS * GATE_UP_ROWS), pairs), blocks of WARPS * LANES threads.
//
//   x                     (tokens, QUADS, chunks) float4, in the order above
//   gate, up              (experts, inner, hidden / 8) words, with scales (experts, inner, hidden / GROUP) bfloat16
//   expert_ids            (pairs,)
//   inner_out             (pairs, QUADS, inner chunks) float4, written
extern "C" __global__ void __launch_bounds__(WARPS * LANES, BLOCKS)
gate_up_decode(const float4* __restrict__ x, const Words* __restrict__ gate, const unsigned short* __restrict__ gate_scale,
               const Words* __restrict__ up, const unsigned short* __restrict__ up_scale, const int* __restrict__ expert_ids,
               float* __restrict__ inner_out, int hidden, int inner, int top_k) {
    const int lane = threadIdx.x % LANES, pair = blockIdx.y;
    const int first = (blockIdx.x * WARPS + threadIdx.x / LANES) * GATE_UP_ROWS;
    if (first >= inner) return;
    const int chunks = hidden / (8 * WORDS), groups = hidden / GROUP;
    const long long at = (long long)expert_ids[pair] * inner + first;
    const Words* const matrix[2] = {gate + at * chunks, up + at * chunks};
    const unsigned short* const scales[2] = {gate_scale + at * groups, up_scale + at * groups};
    float sums[2 * GATE_UP_ROWS];
    products<2, GATE_UP_ROWS>(matrix, scales, x + (long long)(pair / top_k) * QUADS * chunks, chunks, lane, sums);
    const int inner_chunks = inner / (8 * WORDS);
#pragma unroll
    for (int r = 0; r < GATE_UP_ROWS; ++r) {
        const float left = warp_sum(sums[r]), right = warp_sum(sums[GATE_UP_ROWS + r]);
        const float activated = left / (1.0f + expf(-left)) * right;
        const int row = first + r, value = row % (8 * WORDS);
        if (lane == 0) {
            const long long quad = ((long long)pair * QUADS + value / 4) * inner_chunks + row / (8 * WORDS);
            inner_out[4 * quad + value % 4] = ROUNDED ? to_bfloat16(activated) : activated;
        }
    }
}

// Weighted sum over each token's slots. Grid: (hidden / (WARPS * DOWN_ROWS), tokens), blocks of WARPS * LANES threads.
//
//   inner_in              (pairs, QUADS, inner chunks) float4, as `gate_up_decode` writes it
//   down                  (experts, hidden, inner / 8) words, with scales (experts, hidden, inner / GROUP) bfloat16
//   expert_ids, weights   (tokens, top_k)
//   y                     (tokens, hidden), written
extern "C" __global__ void __launch_bounds__(WARPS * LANES, BLOCKS)
down_decode(const float4* __restrict__ inner_in, const Words* __restrict__ down, const unsigned short* __restrict__ down_scale,
            const int* __restrict__ expert_ids, const float* __restrict__ weights, float* __restrict__ y, int hidden, int inner,
            int top_k) {
    const int lane = threadIdx.x % LANES, token = blockIdx.y;
    const int first = (blockIdx.x * WARPS + threadIdx.x / LANES) * DOWN_ROWS;
    if (first >= hidden) return;
    const int chunks = inner / (8 * WORDS), groups = inner / GROUP;
    float totals[DOWN_ROWS] = {};
    for (int slot = 0; slot < top_k; ++slot) {
        const long long pair = (long long)token * top_k + slot, at = (long long)expert_ids[pair] * hidden + first;
        const Words* const matrix[1] = {down + at * chunks};
        const unsigned short* const scales[1] = {down_scale + at * groups};
        float sums[DOWN_ROWS];
        products<1, DOWN_ROWS>(matrix, scales, inner_in + pair * QUADS * chunks, chunks, lane, sums);
        const float weight = weights[pair];
#pragma unroll
        for (int r = 0; r < DOWN_ROWS; ++r) totals[r] = fmaf(weight, warp_sum(sums[r]), totals[r]);
    }
#pragma unroll
    for (int r = 0; r < DOWN_ROWS; ++r)
        if (lane == 0) y[(long long)token * hidden + first + r] = totals[r];
}
