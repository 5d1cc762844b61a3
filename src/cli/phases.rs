//! Time and memory of the phases of a command.

use std::time::Instant;

use serde::Serialize;

use super::memory::MemorySampler;

/// What one phase took.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Phase {
    name: &'static str,
    elapsed_secs: f64,
    /// Peak anonymous memory, where the system tells.
    peak_bytes: Option<u64>,
    note: String,
}

/// Times phases and their memory.
pub(super) struct Phases {
    pub(super) all: Vec<Phase>,
    start: Instant,
    memory: MemorySampler,
}

impl Phases {
    pub(super) fn new() -> Self {
        Self { all: Vec::new(), start: Instant::now(), memory: MemorySampler::start() }
    }

    /// Ends the phase that began with the last one's end.
    pub(super) fn end(&mut self, name: &'static str, note: String) {
        let elapsed_secs = self.start.elapsed().as_secs_f64();
        self.all.push(Phase { name, elapsed_secs, peak_bytes: self.memory.take_peak_bytes(), note });
        self.start = Instant::now();
    }

    /// One line a phase.
    pub(super) fn text(&self) -> String {
        let line = |phase: &Phase| {
            let memory = phase.peak_bytes.map_or(String::new(), |bytes| format!("{:>8.0} MB", bytes as f64 / 1e6));
            format!("{:<12}{:>8.2} s{memory}  {}\n", phase.name, phase.elapsed_secs, phase.note)
        };
        let total: f64 = self.all.iter().map(|p| p.elapsed_secs).sum();
        let peak_bytes = self.all.iter().filter_map(|p| p.peak_bytes).max();
        let total = Phase { name: "in all", elapsed_secs: total, peak_bytes, note: String::new() };
        self.all.iter().chain([&total]).map(line).collect()
    }
}
