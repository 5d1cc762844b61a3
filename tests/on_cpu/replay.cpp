// Runs recorded kernel launches on the CPU: replay IN OUT
//
// IN, all numbers little-endian u64 unless said: n_buffers, then each buffer's size and bytes; n_launches, then each
// launch: length and bytes of the kernel's name, grid x y z, threads a thread block, n_args, then each argument's kind
// and value (0: null; 1: number of a buffer; 2: u32; 3: f32, its bits). OUT: the bytes of all buffers, one after
// another.
//
// Every buffer is an allocation of exactly its size, so that AddressSanitizer sees each access outside one.
#include "cuda_on_cpu.h"

#include <stdlib.h>

#include <fstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "edge_rows.cu"
#include "encode_active.cu"
#include "frozen_attention.cu"
#include "influence.cu"
#include "norm_pullback.cu"

struct Arg {
    uint64_t kind, value;
    void* buffer;
};

[[noreturn]] static void usage_error(const std::string& what) {
    fprintf(stderr, "%s\n", what.c_str());
    exit(2);
}

template <typename T>
static T* unpack(const Arg& arg, T**) {
    if (arg.kind > 1) usage_error("a number where the kernel has a pointer");
    return static_cast<T*>(arg.buffer);
}

static u32 unpack(const Arg& arg, u32*) {
    if (arg.kind != 2) usage_error("an argument that is no u32 where the kernel has one");
    return static_cast<u32>(arg.value);
}

static float unpack(const Arg& arg, float*) {
    if (arg.kind != 3) usage_error("an argument that is no f32 where the kernel has one");
    return on_cpu::from_bits<float>(arg.value);
}

template <typename... T, size_t... I>
static void call(void (*kernel)(T...), const std::vector<Arg>& args, std::index_sequence<I...>) {
    kernel(unpack(args[I], static_cast<T*>(nullptr))...);
}

using Call = void (*)(const std::vector<Arg>&);

struct Kernel {
    const char* name;
    size_t n_args;
    Call call;
};

template <typename... T>
static constexpr size_t count_args(void (*)(T...)) {
    return sizeof...(T);
}

template <auto KERNEL>
static void call_kernel(const std::vector<Arg>& args) {
    call(KERNEL, args, std::make_index_sequence<count_args(KERNEL)>{});
}

#define KERNEL(name) {#name, count_args(name), call_kernel<name>}
static const Kernel KERNELS[] = {
    KERNEL(norm_pullback),         KERNEL(edge_rows),        KERNEL(frozen_attention_short),
    KERNEL(frozen_attention_long), KERNEL(encode_cut),       KERNEL(encode_count),
    KERNEL(encode_scan),           KERNEL(encode_write),     KERNEL(row_abs_sums),
    KERNEL(influence_sweep),       KERNEL(influence_select),
};

#if !defined(__SANITIZE_ADDRESS__)
extern "C" char __start_cuda_shared[], __stop_cuda_shared[];
#endif

static void fill_shared_memory() {
#if !defined(__SANITIZE_ADDRESS__)
    memset(__start_cuda_shared, 0xff, static_cast<size_t>(__stop_cuda_shared - __start_cuda_shared));
#endif
}

struct Run {
    const Kernel* kernel;
    const std::vector<Arg>* args;
    unsigned thread;
};

static void* run_thread(void* argument) {
    const Run& run = *static_cast<Run*>(argument);
    threadIdx = {run.thread, 0, 0};
    for (unsigned z = 0; z < gridDim.z; ++z) {
        for (unsigned y = 0; y < gridDim.y; ++y) {
            for (unsigned x = 0; x < gridDim.x; ++x) {
                blockIdx = {x, y, z};
                if (run.thread == 0) fill_shared_memory();
                on_cpu::wait_for_block(on_cpu::END);
                run.kernel->call(*run.args);
                on_cpu::wait_for_block(on_cpu::END);
            }
        }
    }
    return nullptr;
}

static void launch(const Kernel& kernel, const std::vector<Arg>& args) {
    const unsigned n_threads = blockDim.x;
    pthread_barrier_init(&on_cpu::barrier, nullptr, n_threads);
    std::vector<pthread_t> threads(n_threads);
    std::vector<Run> runs(n_threads);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 18);
    for (unsigned t = 0; t < n_threads; ++t) {
        runs[t] = {&kernel, &args, t};
        if (pthread_create(&threads[t], &attributes, run_thread, &runs[t]) != 0) usage_error("cannot start a thread");
    }
    for (auto thread : threads) pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
    pthread_barrier_destroy(&on_cpu::barrier);
}

static uint64_t read_u64(std::istream& in) {
    uint64_t value = 0;
    if (!in.read(reinterpret_cast<char*>(&value), sizeof value)) usage_error("the input ends too early");
    return value;
}

int main(int argc, char** argv) {
    if (argc != 3) usage_error("usage: replay IN OUT");
    alarm(300);  // a kernel that never ends is a wrong one
    std::ifstream in(argv[1], std::ios::binary);
    std::vector<std::pair<void*, size_t>> buffers(read_u64(in));
    for (auto& [data, size] : buffers) {
        size = read_u64(in);
        data = malloc(size);
        in.read(static_cast<char*>(data), static_cast<std::streamsize>(size));
    }
    for (uint64_t n_launches = read_u64(in); n_launches > 0; --n_launches) {
        std::string name(read_u64(in), ' ');
        in.read(name.data(), static_cast<std::streamsize>(name.size()));
        unsigned grid[3];
        for (auto& blocks : grid) blocks = static_cast<unsigned>(read_u64(in));
        gridDim = {grid[0], grid[1], grid[2]};
        blockDim = {static_cast<unsigned>(read_u64(in)), 1, 1};
        std::vector<Arg> args(read_u64(in));
        for (auto& arg : args) {
            arg.kind = read_u64(in);
            arg.value = read_u64(in);
            arg.buffer = arg.kind == 1 ? buffers.at(arg.value).first : nullptr;
        }
        const Kernel* found = nullptr;
        for (const auto& kernel : KERNELS) found = name == kernel.name ? &kernel : found;
        if (!found) usage_error("no kernel " + name);
        if (found->n_args != args.size()) usage_error(name + ": wrong number of arguments");
        launch(*found, args);
    }
    std::ofstream out(argv[2], std::ios::binary);
    for (auto& [data, size] : buffers) {
        out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
        free(data);
    }
    out.flush();
    return out.good() ? 0 : 2;
}
