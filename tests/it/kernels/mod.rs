//! The CUDA kernels' own source, run on the CPU: threads of a thread block are real threads, and barriers, shuffles and shared
//! memory have CUDA's meaning (`tests/on_cpu/cuda_on_cpu.h`). What prepares the launches is the program's own code.
//!
//! Each kernel must agree with its CPU side; the same runs under ThreadSanitizer must show no race and under
//! AddressSanitizer no access outside a buffer; and kernels with a planted fault must be caught.

mod agreement;
mod mutants;
mod on_cpu;
mod ptxas;
