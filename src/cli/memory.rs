//! Peak memory of the phases of a command, sampled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::memory::figure;

/// Time between two samples: short against every phase worth reporting.
const INTERVAL: Duration = Duration::from_millis(2);

/// Samples the anonymous memory of this process (`RssAnon` of Linux; other systems have no such figure).
///
/// Memory-mapped files do not count: the system takes those pages back when it needs them.
#[derive(Debug)]
pub struct MemorySampler {
    peak_bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl MemorySampler {
    /// Starts sampling in a thread of its own.
    pub fn start() -> Self {
        let (peak_bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (peak, stopped) = (Arc::clone(&peak_bytes), Arc::clone(&stop));
        let sample = move || {
            while !stopped.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_bytes().unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(INTERVAL);
            }
        };
        // A system that has no thread left for this gives no samples.
        let thread = anonymous_bytes().and_then(|_| std::thread::Builder::new().spawn(sample).ok());
        Self { peak_bytes, stop, thread }
    }

    /// The peak since the last call, in bytes; `None` where it cannot be had.
    pub fn take_peak_bytes(&self) -> Option<u64> {
        let now = anonymous_bytes()?;
        Some(self.peak_bytes.swap(now, Ordering::Relaxed).max(now))
    }
}

impl Drop for MemorySampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A sampler that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

/// Anonymous resident memory of this process.
fn anonymous_bytes() -> Option<u64> {
    figure("/proc/self/status", "RssAnon")
}
