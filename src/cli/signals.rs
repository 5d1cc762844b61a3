//! Signals that end the program: it leaves no half-written file behind, and the exit code is the shell's for the signal. A
//! command that can keep what it has done is asked to end first; a second signal ends it at once.

use std::sync::OnceLock;

use crate::job::CancelToken;

/// What the first signal cancels.
static GENTLE: OnceLock<CancelToken> = OnceLock::new();

/// The exit code of a command that SIGINT ended.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// The first signal from now on cancels the token.
pub(super) fn cancel_first(token: &CancelToken) {
    // A second command in one process keeps the first one's.
    let _ = GENTLE.set(token.clone());
}

/// Removes temporary files when a signal ends the program, which then exits with 128 and the signal's number. Writing
/// past the limit of a file's size becomes an error of the write.
#[cfg(unix)]
pub(super) fn end_cleanly() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;

    use crate::export::abandon_files;

    // SAFETY: nothing but the disposition of the signal is set, to a constant that is valid for it.
    unsafe { libc::signal(SIGXFSZ, libc::SIG_IGN) };
    // Who was told to ignore a signal goes on ignoring it: `nohup`, and jobs of a shell in the background.
    let heard: Vec<i32> = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal)).collect();
    let (send, receive) = std::sync::mpsc::channel::<Signals>();
    let wait = move || {
        let Ok(mut signals) = receive.recv() else { return };
        for signal in signals.forever() {
            if let Some(token) = GENTLE.get().filter(|token| !token.is_cancelled()) {
                token.cancel();
                continue;
            }
            // `_exit`: what runs at a usual exit would wait for threads that compute or write.
            // SAFETY: ends the process, whatever state it is in.
            abandon_files(|| unsafe { libc::_exit(128 + signal) });
        }
    };
    // Without a thread to wait in, signals do what they do by default. With one they are heard from here on, and not only
    // once it has begun: files are written soon.
    if std::thread::Builder::new().name("signals".into()).spawn(wait).is_ok()
        && let Ok(signals) = Signals::new(heard)
    {
        let _ = send.send(signals);
    }
}

/// Whether this program was started with a signal ignored.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: the action is only read, into a place that is zeroed, which is a valid value of all its fields.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
pub(super) fn end_cleanly() {}
