// CUDA's words for a CPU, so that a kernel's own source runs without a GPU: threads of a thread block are real threads,
// thread blocks (blocks below) follow each other.
//
// What it keeps of CUDA's meaning, so that a kernel that is wrong on a GPU is wrong here too:
// - __syncthreads orders memory among the threads of a block; all of them must reach the same one, or the run ends with
//   an error (none may have left the kernel).
// - Warp shuffles and ballots need all 32 lanes of the warp, and order no memory: they exchange relaxed atomics, so
//   ThreadSanitizer sees a race where a kernel relies on a warp running in step.
// - Shared memory belongs to one block: between blocks it is filled with a pattern that reads as NaN, so that what a
//   block did not write cannot look right (not under AddressSanitizer, which guards its bounds instead).
// - There are no other intrinsics than those below: a kernel that uses one does not compile here.
//
// With CIRCUITSCOPE_FIBERS, threads take turns instead (`driver_on_cpu.cpp`).
#pragma once

#include <errno.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static __attribute__((section("cuda_shared")))
#endif
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct Dim3 {
    unsigned x, y, z;
};

#if defined(CIRCUITSCOPE_FIBERS)
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;
#else
inline thread_local Dim3 threadIdx, blockIdx;
inline Dim3 blockDim, gridDim;
#endif

namespace on_cpu {

constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned LANES = 32;

// Exit codes, apart from those of the sanitizers.
constexpr int DIVERGED = 3;

[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "block (%u, %u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, what);
    fflush(stderr);
    _exit(DIVERGED);
}

#if !defined(CIRCUITSCOPE_FIBERS)

// Where a thread waits for its block. What it waits for is compared after the wait: a thread that has left the kernel
// waits at its end.
enum Place : int { BARRIER, END };

inline pthread_barrier_t barrier;
inline std::atomic<int> place_of[2][MAX_THREADS];
inline thread_local unsigned n_waits;

inline void wait_for_block(Place place) {
    // Two sets of places in turn: a thread may reach its next wait while others still look at this one.
    auto* places = place_of[n_waits++ % 2];
    places[threadIdx.x].store(place, std::memory_order_relaxed);
    pthread_barrier_wait(&barrier);
    for (unsigned t = 0; t < blockDim.x; ++t) {
        if (places[t].load(std::memory_order_relaxed) != place) fail("a barrier that not all threads of the block reach");
    }
}

// Exchanges of a warp. Two sets of values in turn: a lane that writes one again has passed the exchange after it, where
// every lane arrived, hence was done with reading it.
struct Exchange {
    std::atomic<uint64_t> value[2][LANES];
    std::atomic<unsigned> n_arrived;
    std::atomic<unsigned> n_done;
};
inline Exchange exchanges[MAX_THREADS / LANES];
inline thread_local unsigned n_exchanges;

// Shows a value to the warp and returns those of all lanes.
//
// Waits by relaxed atomics and bare system calls, which are no synchronisation to ThreadSanitizer; they keep the program
// order on the processors that this runs on (x86-64, and others whose read-modify-writes are ordered).
inline const std::atomic<uint64_t>* exchange(unsigned mask, uint64_t value) {
    if (mask != 0xffffffffu) fail("a warp operation without all lanes");
    Exchange& warp = exchanges[threadIdx.x / LANES];
    auto* values = warp.value[n_exchanges++ % 2];
    values[threadIdx.x % LANES].store(value, std::memory_order_relaxed);
    const unsigned done = warp.n_done.load(std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (warp.n_arrived.fetch_add(1, std::memory_order_relaxed) + 1 == LANES) {
        warp.n_arrived.store(0, std::memory_order_relaxed);
        warp.n_done.fetch_add(1, std::memory_order_relaxed);
        syscall(SYS_futex, &warp.n_done, FUTEX_WAKE_PRIVATE, LANES, nullptr, nullptr, 0);
    } else {
        const timespec at_most = {60, 0};
        while (warp.n_done.load(std::memory_order_relaxed) == done) {
            const long result = syscall(SYS_futex, &warp.n_done, FUTEX_WAIT_PRIVATE, done, &at_most, nullptr, 0);
            if (result != 0 && errno == ETIMEDOUT) fail("a warp operation that not all lanes reach");
        }
    }
    std::atomic_signal_fence(std::memory_order_seq_cst);
    return values;
}

#else

// Threads take turns on one processor: much faster than real ones, for whole runs of the program. Nothing is checked
// that real threads check.
inline void (*yield)();
inline unsigned n_arrived, n_passed;
enum Place : int { BARRIER, END };

inline void wait_for_block(Place) {
    const unsigned passed = n_passed;
    if (++n_arrived == blockDim.x) {
        n_arrived = 0;
        ++n_passed;
    } else {
        while (n_passed == passed) yield();
    }
}

struct Exchange {
    uint64_t value[2][LANES];
    unsigned n_arrived, n_done;
};
inline Exchange exchanges[MAX_THREADS / LANES];
inline unsigned n_exchanges[MAX_THREADS];

inline const uint64_t* exchange(unsigned, uint64_t value) {
    Exchange& warp = exchanges[threadIdx.x / LANES];
    auto* values = warp.value[n_exchanges[threadIdx.x]++ % 2];
    values[threadIdx.x % LANES] = value;
    const unsigned done = warp.n_done;
    if (++warp.n_arrived == LANES) {
        warp.n_arrived = 0;
        ++warp.n_done;
    } else {
        while (warp.n_done == done) yield();
    }
    return values;
}

#endif

inline uint64_t read(const std::atomic<uint64_t>& value) { return value.load(std::memory_order_relaxed); }
inline uint64_t read(const uint64_t& value) { return value; }

template <typename T>
uint64_t to_bits(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait_for_block(on_cpu::BARRIER); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned lane_mask) {
    const auto* values = on_cpu::exchange(mask, on_cpu::to_bits(value));
    return on_cpu::from_bits<T>(on_cpu::read(values[(threadIdx.x ^ lane_mask) % on_cpu::LANES]));
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    const auto* values = on_cpu::exchange(mask, predicate);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < on_cpu::LANES; ++lane) {
        ballot |= static_cast<unsigned>(on_cpu::read(values[lane])) << lane;
    }
    return ballot;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(on_cpu::to_bits(value)); }
inline long long __double_as_longlong(double value) { return static_cast<long long>(on_cpu::to_bits(value)); }
