// moe_experts_decode.cu as plain C++: the same source, its grid walked by loops and each warp's lanes by coroutines.
//
// A lane runs until it needs the others (__shfl_xor_sync), lays its value down and lets the next one run; when all lanes have
// laid theirs down, each takes its neighbour's. A lane that left the kernel must not be missed: kernels leave by whole warps,
// and `experts` says so where one does not.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __restrict__
#define __launch_bounds__(...)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct Place {
    unsigned x, y, z;
};

static Place threadIdx, blockIdx;

enum { MISALIGNED = 1, PARTED = 2 };  // what no GPU would forgive: a wide load elsewhere, a lane that does not take part
static int wrong;

template <class T>
static T __ldcs(const T* address) {
    if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T)) wrong |= MISALIGNED;  // a GPU faults
    return *address;
}
static float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

namespace warp {
constexpr int SIZE = 32;
static ucontext_t home, lanes[SIZE];
static bool finished[SIZE];
static float laid[2][SIZE];  // by turns: a quick lane may lay its next value before a slow one took this one
static int turn[SIZE], current;
static std::function<void()> body;

static void enter() {
    body();
    finished[current] = true;
    swapcontext(&lanes[current], &home);
}

static float shuffle(float value, int mask) {
    const int lane = current, own = turn[lane] % 2, ordinal = turn[lane]++;
    laid[own][lane] = value;
    swapcontext(&lanes[lane], &home);
    if (turn[lane ^ mask] <= ordinal) wrong |= PARTED;
    return laid[own][lane ^ mask];
}

static void run(unsigned first_thread, const std::function<void()>& kernel) {
    static std::vector<char> stacks(SIZE * 65536);
    body = kernel;
    for (int lane = 0; lane < SIZE; ++lane) {
        finished[lane] = false, turn[lane] = 0;
        getcontext(&lanes[lane]);
        lanes[lane].uc_stack.ss_sp = &stacks[lane * 65536];
        lanes[lane].uc_stack.ss_size = 65536;
        lanes[lane].uc_link = nullptr;
        makecontext(&lanes[lane], enter, 0);
    }
    for (bool any = true; any;) {
        any = false;
        for (current = 0; current < SIZE; ++current) {
            if (finished[current]) continue;
            any = true;
            threadIdx = {first_thread + current, 0, 0};
            swapcontext(&home, &lanes[current]);
        }
    }
}

static void grid(unsigned x, unsigned y, unsigned threads, const std::function<void()>& kernel) {
    for (unsigned j = 0; j < y; ++j)
        for (unsigned i = 0; i < x; ++i)
            for (unsigned first = 0; first < threads; first += SIZE) {
                blockIdx = {i, j, 0};
                run(first, kernel);
            }
}
}  // namespace warp

static float __shfl_xor_sync(unsigned, float value, int mask) { return warp::shuffle(value, mask); }

#include "moe_experts_decode.cu"

extern "C" void round_all(const float* x, float* y, int count) {
    for (int i = 0; i < count; ++i) y[i] = to_bfloat16(x[i]);
}

// Returns 0, or what was wrong.
extern "C" int experts(const float* x, const void* gate, const unsigned short* gate_scale, const void* up,
                       const unsigned short* up_scale, const void* down, const unsigned short* down_scale, const int* ids,
                       const float* weights, float* inner_values, float* y, int tokens, int hidden, int inner, int top_k,
                       int threads, int gate_up_tile, int down_tile) {
    wrong = 0;
    warp::grid((inner + gate_up_tile - 1) / gate_up_tile, tokens * top_k, threads, [&] {
        gate_up_decode((const float4*)x, (const Words*)gate, gate_scale, (const Words*)up, up_scale, ids, inner_values, hidden,
                       inner, top_k);
    });
    warp::grid((hidden + down_tile - 1) / down_tile, tokens, threads, [&] {
        down_decode((const float4*)inner_values, (const Words*)down, down_scale, ids, weights, y, hidden, inner, top_k);
    });
    return wrong;
}
