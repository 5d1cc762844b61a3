//! Kernel launches as data, so that the code that prepares them is the same wherever they run: on a GPU
//! (`--features cuda`), or kernel by kernel on the CPU in the tests, which so cover everything but the launch itself.

use std::ops::Range;

use candle_core::{Result, bail};
use pulp::bytemuck::Pod;

use super::cuda::DeviceValue;

/// A kernel of `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its file, without `.cu`.
    pub file: &'static str,
    pub name: &'static str,
    /// Threads of a thread block, which the kernel is written for.
    pub n_threads: u32,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer that the kernel may find to be null.
    Null,
    /// Device memory, by address or whatever else names it to a [`Gpu`].
    Buffer(u64),
    U32(u32),
    F32(f32),
}

impl Arg {
    /// A size or index.
    ///
    /// # Errors
    /// One that 32 bits do not hold.
    pub fn size(value: usize) -> Result<Self> {
        match u32::try_from(value) {
            Ok(value) => Ok(Self::U32(value)),
            Err(_) => bail!("a kernel's size {value} is larger than {}", u32::MAX),
        }
    }
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub kernel: Kernel,
    /// Thread blocks along x, y and z; with none along one, nothing is launched.
    pub grid: [usize; 3],
    /// In the order of the kernel's parameters.
    pub args: Vec<Arg>,
}

/// Most thread blocks along y and z.
const MAX_GRID_YZ: usize = 65_535;

impl Launch {
    /// The grid as a device takes it; `None` where there is nothing to do.
    ///
    /// # Errors
    /// A grid that is too large.
    pub fn grid_dim(&self) -> Result<Option<(u32, u32, u32)>> {
        let [x, y, z] = self.grid;
        if x > i32::MAX as usize || y > MAX_GRID_YZ || z > MAX_GRID_YZ {
            bail!("{}: a grid of {x} x {y} x {z} thread blocks is too large", self.kernel.name);
        }
        Ok((x > 0 && y > 0 && z > 0).then_some((x as u32, y as u32, z as u32)))
    }
}

/// What kernels can read and write.
pub trait Element: Pod + DeviceValue {}

impl Element for f32 {}
impl Element for f64 {}
impl Element for u32 {}

/// Something that runs kernels, one after another.
pub trait Gpu {
    /// Memory that kernels see.
    type Buffer<T: Element>;

    /// # Errors
    /// Those of the device.
    fn zeros<T: Element>(&self, len: usize) -> Result<Self::Buffer<T>>;

    /// # Errors
    /// Those of the device.
    fn upload<T: Element>(&self, values: &[T]) -> Result<Self::Buffer<T>>;

    /// Waits for the launches so far and copies.
    ///
    /// # Errors
    /// Those of the device.
    fn download<T: Element>(&self, buffer: &Self::Buffer<T>) -> Result<Vec<T>>;

    /// As [`Gpu::download`], some of the values.
    ///
    /// # Errors
    /// Those of the device.
    fn download_part<T: Element>(&self, buffer: &Self::Buffer<T>, part: Range<usize>) -> Result<Vec<T>>;

    /// The argument that stands for a buffer; good while the buffer lives.
    fn arg<T: Element>(&self, buffer: &Self::Buffer<T>) -> Arg;

    /// Launches a kernel, or nothing where the grid is empty.
    ///
    /// # Safety
    /// The arguments are those of the kernel's signature, and its buffers are as large as the kernel's comments say.
    ///
    /// # Errors
    /// Those of the device.
    unsafe fn launch(&self, launch: &Launch) -> Result<()>;
}
