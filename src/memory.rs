//! `memory`: what memory there is for this process, and plans of what a call needs, held against it before anything of
//! that size is allocated. An allocation that fails ends the program, and one that succeeds on the system's credit may
//! end it later, so that both must be known before.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result, Shortage};

thread_local! {
    /// How many calls at once, this thread's among them, hold their plans against the same memory.
    static CALLS_AT_ONCE: Cell<u64> = const { Cell::new(1) };
}

/// From now on, plans that this thread checks may take one `n`th of what is left: as many threads make plans of their own at
/// the same time, and none knows what the others are about to take.
pub(crate) fn share_memory(n: usize) {
    CALLS_AT_ONCE.set(n.max(1) as u64);
}

/// Memory that a call needs beyond what the process has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryPlan {
    /// What needs it, and bytes.
    parts: Vec<(&'static str, u64)>,
}

impl MemoryPlan {
    /// Needs nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same plan, and `bytes` for `what`.
    pub fn with(mut self, what: &'static str, bytes: u64) -> Self {
        self.parts.push((what, bytes));
        self
    }

    /// Bytes of all parts, which are needed at the same time.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.1))
    }

    /// Holds the plan against the memory that is left. `doing` says what for; `fits` says what would fit into a number
    /// of bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    pub fn check(&self, doing: impl FnOnce() -> String, fits: impl FnOnce(u64) -> String) -> Result<()> {
        match memory_left() {
            Some(left) => {
                let left = MemoryLeft { bytes: left.bytes / CALLS_AT_ONCE.get(), ..left };
                self.check_against(&left, doing, fits)
            }
            None => Ok(()),
        }
    }

    fn check_against(
        &self,
        left: &MemoryLeft,
        doing: impl FnOnce() -> String,
        fits: impl FnOnce(u64) -> String,
    ) -> Result<()> {
        let needed = with_margin(self.bytes());
        if needed <= left.bytes {
            return Ok(());
        }
        // What makes less than a twentieth of it is not worth reading.
        let mut large: Vec<&(&str, u64)> = self.parts.iter().filter(|part| part.1 > self.bytes() / 20).collect();
        large.sort_by_key(|part| std::cmp::Reverse(part.1));
        let parts: Vec<String> = large.iter().map(|(what, bytes)| format!("{what} {}", size(*bytes))).collect();
        Err(Error::OutOfMemory {
            doing: doing(),
            needed: size(needed),
            why: Box::new(Shortage {
                parts: parts.join(", "),
                left: size(left.bytes),
                limit: left.limit,
                fits: fits(left.bytes.saturating_sub(RESERVE_BYTES + HINT_BYTES) / 9 * 8),
            }),
        })
    }
}

/// What a plan does not count: the stacks of threads that begin later, and what the allocator holds back.
const RESERVE_BYTES: u64 = 24 << 20;

/// Address space that glibc sets aside for what a thread allocates.
#[cfg(target_os = "linux")]
const THREAD_ADDRESSES: u64 = 64 << 20;

/// What is kept free of the number that a message names: what the allocator holds when that number is tried differs from
/// what it holds now.
const HINT_BYTES: u64 = 8 << 20;

/// With the reserve, and an eighth for all that is small and for what the allocator cannot use again: measured runs take
/// 2 to 12 % more than their plans say.
fn with_margin(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8).saturating_add(RESERVE_BYTES)
}

/// Bytes as they are read: `1.24 GB`, `310 MB`.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        bytes => format!("{:.0} MB", bytes / 1e6),
    }
}

/// The memory that this process can still get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryLeft {
    /// The least of what every limit leaves.
    pub bytes: u64,
    /// Which limit that is, in words.
    pub limit: &'static str,
}

/// Bytes that this process is to have at most; 0: no such limit.
static GIVEN_LIMIT: AtomicU64 = AtomicU64::new(0);

/// Holds every plan of this process against `bytes` of memory too, the process as it is included. 0: no longer.
pub fn set_limit(bytes: u64) {
    GIVEN_LIMIT.store(bytes, Ordering::Relaxed);
}

/// What is left of the limit that was given.
fn given_left() -> Option<u64> {
    let limit = Some(GIVEN_LIMIT.load(Ordering::Relaxed)).filter(|&limit| limit > 0)?;
    Some(limit.saturating_sub(figure("/proc/self/status", "RssAnon").unwrap_or(0)))
}

/// Reads a size as it is typed: `4GB`, `512 MB`, `1.5GiB`; bytes without a unit.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit = match text[end..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number * unit;
    (bytes.is_finite() && (1.0..1e18).contains(&bytes)).then_some(bytes as u64)
}

/// What is left under every limit: of address space and of data (`ulimit -v`, `ulimit -d`), of the control groups that
/// this process is in, and of the machine. `None` where the system tells none of them, as others than Linux do not.
pub fn memory_left() -> Option<MemoryLeft> {
    let candidates = [
        (given_left(), "the limit that `--memory` gives"),
        (address_space_left(), "the limit of address space, `ulimit -v`"),
        (data_left(), "the limit of data, `ulimit -d`"),
        (control_groups_left(), "the memory limit of the control group or container"),
        (machine_left(), "the machine's memory"),
    ];
    let candidates = candidates.into_iter().filter_map(|(bytes, limit)| Some(MemoryLeft { bytes: bytes?, limit }));
    candidates.min_by_key(|left| left.bytes)
}

/// A figure of a file of lines `name: value kB` or `name value`; in bytes where the unit is kB.
pub(crate) fn figure(path: impl AsRef<Path>, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut words = text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([':', ' ']).then(|| rest.trim_start_matches(':').split_whitespace())
    })?;
    let value: u64 = words.next()?.parse().ok()?;
    Some(if words.next() == Some("kB") { value * 1024 } else { value })
}

#[cfg(target_os = "linux")]
fn limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the place that the system writes to is a local one of the right type.
    let known = unsafe { libc::getrlimit(resource, &mut limit) } == 0;
    (known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(target_os = "linux")]
fn address_space_left() -> Option<u64> {
    // Threads that have allocated nothing yet will set address space aside for it.
    let n_threads = rayon::current_num_threads() as u64 + 1;
    let taken = figure("/proc/self/status", "VmSize")?.saturating_add(n_threads.saturating_mul(THREAD_ADDRESSES));
    Some(limit(libc::RLIMIT_AS)?.saturating_sub(taken))
}

#[cfg(target_os = "linux")]
fn data_left() -> Option<u64> {
    Some(limit(libc::RLIMIT_DATA)?.saturating_sub(figure("/proc/self/status", "VmData")?))
}

#[cfg(not(target_os = "linux"))]
fn address_space_left() -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn data_left() -> Option<u64> {
    None
}

/// What the machine has for new programs without swapping, and its swap.
fn machine_left() -> Option<u64> {
    Some(figure("/proc/meminfo", "MemAvailable")? + figure("/proc/meminfo", "SwapFree").unwrap_or(0))
}

fn control_groups_left() -> Option<u64> {
    groups_left(&std::fs::read_to_string("/proc/self/cgroup").ok()?, Path::new("/sys/fs/cgroup"))
}

/// The least that is left of the groups that `membership` (as in `/proc/self/cgroup`) names, and of those above them.
/// The pages of files do not count: the system takes them back.
fn groups_left(membership: &str, root: &Path) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        // Version 2 has one tree for all controllers, version 1 one for each.
        let (root, limit, usage, swap) = match controllers {
            "" => (root.to_owned(), "memory.max", "memory.current", true),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", false)
            }
            _ => continue,
        };
        let number = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let mut group = root.join(path.trim_start_matches('/'));
        while group.starts_with(&root) {
            // Without a limit there is `max`, or of version 1 a number that no machine has.
            if let (Some(most), Some(used)) = (number(group.join(limit)), number(group.join(usage)))
                && most < 1 << 60
            {
                let of = |name: &str| figure(group.join("memory.stat"), name).unwrap_or(0);
                let files = of("inactive_file") + of("active_file");
                let swap_left = match swap {
                    true => number(group.join("memory.swap.max"))
                        .zip(number(group.join("memory.swap.current")))
                        .map_or(0, |(most, used)| most.saturating_sub(used)),
                    false => 0,
                };
                let left = most.saturating_sub(used.saturating_sub(files)).saturating_add(swap_left);
                least = Some(least.map_or(left, |least| least.min(left)));
            }
            if !group.pop() {
                break;
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_does_not_fit_says_what_needs_how_much_and_what_would_fit() {
        let plan = MemoryPlan::new().with("rows", 3_000_000_000).with("ids", 1_000_000).with("weights", 240_000_000);
        assert_eq!(plan.bytes(), 3_241_000_000);
        let check = |bytes| {
            let left = MemoryLeft { bytes, limit: "the machine's memory" };
            plan.check_against(&left, || "a graph of 998 tokens".into(), |bytes| format!("{bytes} bytes of tokens"))
        };
        check(with_margin(3_241_000_000)).unwrap();
        let error = check(2_000_000_000).unwrap_err();
        let message = format!("{error}; {}", error.hint().unwrap());
        for part in ["998 tokens", "3.67 GB", "rows 3.00 GB, weights 240 MB", "2.00 GB", "machine", "1747951616"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains("ids"), "{message}");
    }

    #[test]
    fn sizes_are_read_as_they_are_typed() {
        let sizes = ["4GB", "512 MB", "1.5GiB", "800", "2g"].map(parse_size);
        assert_eq!(sizes, [4_000_000_000, 512_000_000, 1_610_612_736, 800, 2_000_000_000].map(Some));
        for text in ["", "GB", "4 lemons", "-4GB", "0", "1e400GB", "4GB 2"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn calls_at_once_share_what_is_left() {
        let half = memory_left().unwrap().bytes / 2;
        let fits = move || MemoryPlan::new().with("half", half).check(String::new, |_| String::new()).is_ok();
        assert!(fits());
        let among_four = std::thread::spawn(move || {
            share_memory(4);
            fits()
        });
        assert!(!among_four.join().unwrap() && fits(), "only that thread's plans are held against less");
    }

    #[test]
    fn the_tightest_group_above_this_one_counts_without_the_pages_of_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/memory.max", "1000\n");
        write("a/memory.current", "800\n");
        write("a/memory.stat", "anon 500\ninactive_file 200\nactive_file 100\n");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "700\n");
        assert_eq!(groups_left("0::/a/b\n", root.path()), Some(500));
        write("a/b/memory.max", "900\n");
        write("a/b/memory.swap.max", "60\n");
        write("a/b/memory.swap.current", "10\n");
        assert_eq!(groups_left("0::/a/b\n", root.path()), Some(250));
        assert_eq!(groups_left("0::/other\n", root.path()), None);
        write("memory/c/memory.limit_in_bytes", "400\n");
        write("memory/c/memory.usage_in_bytes", "100\n");
        assert_eq!(groups_left("4:cpu:/c\n3:memory:/c\n", root.path()), Some(300));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_machine_tells_what_is_left() {
        assert!(memory_left().unwrap().bytes > 1 << 20);
        assert!(figure("/proc/self/status", "VmSize").unwrap() > 1 << 20);
    }
}
