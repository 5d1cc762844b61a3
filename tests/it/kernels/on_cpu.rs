//! A [`Gpu`] that runs kernels on the CPU: it records buffers and launches, and has the program built from
//! `tests/on_cpu/replay.cpp` replay them when a result is asked for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use candle_core::{Result, bail};
use circuitscope::ops::gpu::{Arg, Element, Gpu, Launch};
use pulp::bytemuck::{cast_slice, pod_collect_to_vec};

use super::agreement::WRONG_RESULT;

/// How the kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Build {
    Plain,
    /// ThreadSanitizer: finds races.
    Threads,
    /// AddressSanitizer and UndefinedBehaviorSanitizer: find accesses outside buffers, and shifts too far.
    Addresses,
}

impl Build {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Threads, Self::Addresses];

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-O1"],
            Self::Threads => &["-O1", "-g", "-fsanitize=thread"],
            Self::Addresses => &["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        }
    }
}

/// Values of the largest buffer that any case needs, and more.
const MOST_VALUES: usize = 1 << 24;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

/// Whether kernels can be compiled for the CPU; if not, a test says so and ends, but fails in CI.
pub fn available() -> bool {
    let found = cfg!(target_os = "linux") && Command::new(compiler()).arg("--version").output().is_ok();
    if !found {
        crate::support::absent("a C++ compiler (set CXX), to run kernels on the CPU");
    }
    found
}

/// Compiles the kernels in `kernels`, a folder like the project's own, into `program`.
pub fn compile(kernels: &Path, build: Build, program: &Path) -> std::result::Result<(), String> {
    let shim = root().join("tests/on_cpu");
    let output = Command::new(compiler())
        .args(["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DCIRCUITSCOPE_ON_CPU"])
        .args(build.flags())
        .arg("-I")
        .arg(&shim)
        .arg("-I")
        .arg(kernels)
        .arg(shim.join("replay.cpp"))
        .arg("-o")
        .arg(program)
        .arg("-pthread")
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// The project's own kernels, compiled once a run of the tests.
pub fn program(build: Build) -> PathBuf {
    static PROGRAMS: Mutex<Option<(tempfile::TempDir, HashMap<Build, PathBuf>)>> = Mutex::new(None);
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let (folder, programs) = programs.get_or_insert_with(|| (tempfile::tempdir().unwrap(), HashMap::new()));
    let compiled = programs.entry(build).or_insert_with(|| {
        let program = folder.path().join(format!("replay-{build:?}"));
        compile(&root().join("kernels"), build, &program).expect("the kernels compile for the CPU");
        program
    });
    compiled.clone()
}

/// Runs kernels on the CPU.
#[derive(Debug)]
pub struct OnCpu {
    program: PathBuf,
    recorded: RefCell<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    /// By number.
    buffers: Vec<Vec<u8>>,
    /// Not run yet.
    launches: Vec<Launch>,
}

/// Number of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Buffer(usize);

impl OnCpu {
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), recorded: RefCell::default() }
    }

    pub fn input<T: Element>(&self, values: &[T]) -> Arg {
        self.arg::<T>(&self.upload(values).unwrap())
    }

    fn new_buffer(&self, bytes: Vec<u8>) -> Buffer {
        let buffers = &mut self.recorded.borrow_mut().buffers;
        buffers.push(bytes);
        Buffer(buffers.len() - 1)
    }

    /// Runs what has been launched.
    fn catch_up(&self) -> Result<()> {
        let mut recorded = self.recorded.borrow_mut();
        if recorded.launches.is_empty() {
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let (input, output) = (folder.path().join("in"), folder.path().join("out"));
        std::fs::write(&input, recorded.to_bytes()?)?;
        let Output { status, stderr, .. } = Command::new(&self.program)
            .args([&input, &output])
            .env("TSAN_OPTIONS", "exitcode=66 halt_on_error=1")
            .env("ASAN_OPTIONS", "exitcode=67")
            .output()?;
        if !status.success() {
            bail!("{status}: {}", String::from_utf8_lossy(&stderr));
        }
        let bytes = std::fs::read(&output)?;
        let mut at = 0;
        for buffer in &mut recorded.buffers {
            let n = buffer.len();
            buffer.copy_from_slice(&bytes[at..at + n]);
            at += n;
        }
        recorded.launches.clear();
        Ok(())
    }
}

impl Recorded {
    /// The format that `tests/on_cpu/replay.cpp` describes.
    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let number = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_le_bytes());
        number(&mut bytes, self.buffers.len() as u64);
        for buffer in &self.buffers {
            number(&mut bytes, buffer.len() as u64);
            bytes.extend(buffer);
        }
        number(&mut bytes, self.launches.len() as u64);
        for launch in &self.launches {
            number(&mut bytes, launch.kernel.name.len() as u64);
            bytes.extend(launch.kernel.name.as_bytes());
            let (x, y, z) = launch.grid_dim()?.expect("empty grids are not recorded");
            for size in [x, y, z, launch.kernel.n_threads, launch.args.len() as u32] {
                number(&mut bytes, size.into());
            }
            for arg in &launch.args {
                let (kind, value) = match *arg {
                    Arg::Null => (0, 0),
                    Arg::Buffer(buffer) => (1, buffer),
                    Arg::U32(value) => (2, value.into()),
                    Arg::F32(value) => (3, value.to_bits().into()),
                };
                number(&mut bytes, kind);
                number(&mut bytes, value);
            }
        }
        Ok(bytes)
    }
}

impl Gpu for OnCpu {
    type Buffer<T: Element> = Buffer;

    fn zeros<T: Element>(&self, len: usize) -> Result<Buffer> {
        // A kernel that counts wrongly may ask for anything.
        if len > MOST_VALUES {
            bail!("{WRONG_RESULT}: it asks for {len} values");
        }
        Ok(self.new_buffer(vec![0; len * size_of::<T>()]))
    }

    fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer> {
        Ok(self.new_buffer(cast_slice(values).to_vec()))
    }

    fn download<T: Element>(&self, buffer: &Buffer) -> Result<Vec<T>> {
        self.catch_up()?;
        Ok(pod_collect_to_vec(&self.recorded.borrow().buffers[buffer.0]))
    }

    fn download_part<T: Element>(&self, buffer: &Buffer, part: Range<usize>) -> Result<Vec<T>> {
        Ok(self.download::<T>(buffer)?[part].to_vec())
    }

    fn arg<T: Element>(&self, buffer: &Buffer) -> Arg {
        Arg::Buffer(buffer.0 as u64)
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        if launch.grid_dim()?.is_some() {
            self.recorded.borrow_mut().launches.push(launch.clone());
        }
        Ok(())
    }
}
