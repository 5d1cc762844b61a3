//! The CUDA device: launches on candle's stream, and copies of finished rows on a stream of their own.
//!
//! The kernels are compiled by `build.rs` to PTX for compute capability 8.0; the driver makes them fit the GPU when one
//! is first launched.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::cudarc::driver::sys::{CUdevice_attribute, CUresult};
use candle_core::cuda::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig, PinnedHostSlice, PushKernelArg,
    ValidAsZeroBits,
};
use candle_core::cuda::{CudaError, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Device, Error, Layout, Result, Storage, Tensor, bail};

use super::super::device::DeviceLimits;
use super::super::gpu::{Arg, Element, Gpu, Kernel, Launch};

/// Whether this build can use GPUs.
pub const BUILT: bool = true;

/// What a device's memory can hold.
pub trait DeviceValue: DeviceRepr + ValidAsZeroBits {}

impl<T: DeviceRepr + ValidAsZeroBits> DeviceValue for T {}

/// Device memory.
pub type Buffer<T> = CudaSlice<T>;

/// One constant a kernel file, its PTX.
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

fn ptx(kernel: Kernel) -> &'static str {
    match kernel.file {
        "edge_rows" => ptx::EDGE_ROWS,
        "encode_active" => ptx::ENCODE_ACTIVE,
        "frozen_attention" => ptx::FROZEN_ATTENTION,
        "influence" => ptx::INFLUENCE,
        _ => ptx::NORM_PULLBACK,
    }
}

impl Gpu for CudaDevice {
    type Buffer<T: Element> = Buffer<T>;

    fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        // An allocation of no bytes is an error to the driver.
        self.alloc_zeros(len.max(1))
    }

    fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>> {
        if values.is_empty() { self.zeros(0) } else { self.clone_htod(values) }
    }

    fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.clone_dtoh(buffer)
    }

    fn download_part<T: Element>(&self, buffer: &Buffer<T>, part: Range<usize>) -> Result<Vec<T>> {
        // A copy of no bytes is an error to the driver.
        if part.is_empty() { Ok(Vec::new()) } else { self.clone_dtoh(&buffer.slice(part)) }
    }

    fn arg<T: Element>(&self, buffer: &Buffer<T>) -> Arg {
        Arg::Buffer(buffer.device_ptr(&self.cuda_stream()).0)
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        let Some(grid_dim) = launch.grid_dim()? else { return Ok(()) };
        let Kernel { file, name, n_threads } = launch.kernel;
        let function = self.get_or_load_custom_func(name, file, ptx(launch.kernel))?;
        let mut builder = function.builder();
        for arg in &launch.args {
            match arg {
                Arg::Null => builder.arg(&0u64),
                Arg::Buffer(address) => builder.arg(address),
                Arg::U32(value) => builder.arg(value),
                Arg::F32(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig { grid_dim, block_dim: (n_threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the caller vouches for the arguments. Buffers are freed in the order of the stream that they are used
        // on, hence after the launch.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// The argument for a contiguous f32 operand.
pub fn arg(op: &str, storage: &CudaStorage, layout: &Layout) -> Result<Arg> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op}: expected a contiguous operand, got strides {:?}", layout.stride());
    };
    let slice = storage.as_cuda_slice::<f32>()?.slice(start..end);
    Ok(Arg::Buffer(slice.device_ptr(&storage.device.cuda_stream()).0))
}

/// A result as candle holds it.
pub fn storage(values: Buffer<f32>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(values, device.clone())
}

/// Opens GPU `ordinal` and checks that it computes.
pub fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    // A GPU that is older than the kernels, or a driver older than the toolkit, shows at the first launch only.
    let sum: f32 = Tensor::ones(2, DType::F32, &device)?.sum_all()?.to_scalar()?;
    let cuda = device.as_cuda_device()?;
    let (counts, starts) = (cuda.upload(&[1u32, 2])?, cuda.zeros::<u32>(3)?);
    let kernel = Kernel { file: "encode_active", name: "encode_scan", n_threads: 256 };
    let args = vec![cuda.arg(&starts), cuda.arg(&counts), Arg::U32(2)];
    // SAFETY: two counts and three starts.
    unsafe { cuda.launch(&Launch { kernel, grid: [1, 1, 1], args })? };
    if sum != 2.0 || cuda.download(&starts)? != [0, 1, 3] {
        bail!("it computes wrong sums");
    }
    Ok(device)
}

/// The name of a GPU, as the driver gives it.
pub fn name(device: &CudaDevice) -> Result<String> {
    device.cuda_stream().context().name().w()
}

/// What a GPU can do at most.
pub fn limits(device: &CudaDevice) -> Result<DeviceLimits> {
    let stream = device.cuda_stream();
    let read = |attribute: CUdevice_attribute| stream.context().attribute(attribute).map(f64::from).w();
    let clock_khz = read(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    let memory_khz = read(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let bus_bits = read(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    let n_multiprocessors = read(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let major = read(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = read(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    // f32 lanes of a multiprocessor: 64 in the A100 (8.0), 128 in all later ones.
    let lanes = if (major, minor) == (8.0, 0.0) { 64.0 } else { 128.0 };
    Ok(DeviceLimits {
        // Twice a clock: double data rate.
        gb_per_sec: 2.0 * memory_khz * 1e3 * bus_bits / 8.0 / 1e9,
        gflop_per_sec: 2.0 * n_multiprocessors * lanes * clock_khz * 1e3 / 1e9,
    })
}

/// Whether an error says that a device has too little free memory.
pub fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::Context { inner, .. } | Error::WithPath { inner, .. } | Error::WithBacktrace { inner, .. } => {
            is_out_of_memory(inner)
        }
        Error::Cuda(error) => {
            let error: Option<&CudaError> = error.downcast_ref();
            matches!(error, Some(CudaError::Cuda(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY))))
        }
        _ => false,
    }
}

/// Copies rows to the host while the next ones are computed.
#[derive(Debug)]
pub struct Copier {
    stream: Arc<CudaStream>,
    /// Page-locked buffers that no copy uses.
    free: Mutex<Vec<PinnedHostSlice<f32>>>,
}

/// A copy under way.
#[derive(Debug)]
pub struct Copying {
    host: PinnedHostSlice<f32>,
    /// Not to be freed before the copy is done.
    rows: Tensor,
}

impl Copier {
    /// A stream of its own beside that of `device`.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream().context().new_stream().w()?;
        Ok(Self { stream, free: Mutex::new(Vec::new()) })
    }

    /// Starts to copy rows, contiguous f32, as soon as they are computed.
    pub fn start(&self, rows: Tensor) -> Result<Copying> {
        let n = rows.elem_count();
        let pinned = |stream: &Arc<CudaStream>| -> std::result::Result<PinnedHostSlice<f32>, DriverError> {
            // SAFETY: the copy below writes every value that is read. No flags: the host reads this memory, which is
            // slow where it is write-combined.
            unsafe { stream.context().alloc_pinned_with_flags(n, 0) }
        };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let large_enough = free.iter().position(|buffer| buffer.len() >= n);
        let mut host = match large_enough {
            Some(at) => free.swap_remove(at),
            None => pinned(&self.stream).w()?,
        };
        drop(free);
        {
            let (storage, layout) = rows.storage_and_layout();
            let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
                bail!("rows to copy are not contiguous on the GPU");
            };
            self.stream.join(&storage.device.cuda_stream()).w()?;
            self.stream.memcpy_dtoh(&storage.as_cuda_slice::<f32>()?.slice(start..end), &mut host).w()?;
        }
        Ok(Copying { host, rows })
    }

    /// Waits for a copy and shows its values.
    pub fn finish(&self, copying: Copying, show: impl FnOnce(&[f32])) -> Result<()> {
        let Copying { host, rows } = copying;
        show(&host.as_slice().w()?[..rows.elem_count()]);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(host);
        Ok(())
    }
}
