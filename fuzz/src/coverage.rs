//! What inputs reach, counted for each file of the sources: with `FUZZ_COVERAGE` the addresses of all edges are written
//! when the program ends, each with 1 where one of the inputs reached it. `fuzz/run coverage` makes a table of them.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

/// The file to write.
const COVERAGE_FILE: &str = "FUZZ_COVERAGE";

// The linker makes these for the sections of this name, which the compiler fills; libFuzzer reads the same.
unsafe extern "C" {
    static __start___sancov_cntrs: u8;
    static __stop___sancov_cntrs: u8;
    static __start___sancov_pcs: [usize; 2];
    static __executable_start: u8;
    fn atexit(at_exit: extern "C" fn()) -> i32;
}

static FILE: OnceLock<PathBuf> = OnceLock::new();
static REACHED: Mutex<Vec<bool>> = Mutex::new(Vec::new());

fn counters() -> (*const u8, usize) {
    let (start, stop) = (&raw const __start___sancov_cntrs, &raw const __stop___sancov_cntrs);
    (start, stop as usize - start as usize)
}

/// Begins to note what is reached, where that is asked for.
pub fn start() {
    let Some(path) = std::env::var_os(COVERAGE_FILE) else { return };
    FILE.get_or_init(|| path.into());
    *REACHED.lock().expect("nobody panics with it") = vec![false; counters().1];
    // SAFETY: the function is there until the program ends.
    unsafe { atexit(write) };
}

/// Notes what the last input reached: libFuzzer clears its counters before the next one.
pub fn note() {
    if FILE.get().is_none() {
        return;
    }
    let start = counters().0;
    for (at, reached) in REACHED.lock().expect("nobody panics with it").iter_mut().enumerate() {
        // SAFETY: `at` is below the number of counters, each a byte that any thread may write.
        *reached |= unsafe { start.add(at).read_volatile() } != 0;
    }
}

extern "C" fn write() {
    let Some(path) = FILE.get() else { return };
    let Ok(reached) = REACHED.lock() else { return };
    let (pcs, base) = (&raw const __start___sancov_pcs, &raw const __executable_start as usize);
    let mut text = String::new();
    for (at, reached) in reached.iter().enumerate() {
        // SAFETY: there is an address and a flag for every counter.
        let [pc, _] = unsafe { *pcs.add(at) };
        // Of functions that the linker left out the counters are there, and no address.
        let Some(address) = pc.checked_sub(base) else { continue };
        let _ = writeln!(text, "{address:x} {}", u8::from(*reached));
    }
    let _ = std::fs::write(path, text);
}
