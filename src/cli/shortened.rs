//! A mapped file that another program shortens: the system says so by a signal.

/// Ends the program with a message and the exit code of an error, where the signal would end it without.
///
/// Weights and large graphs are mapped, not copied. Whoever shortens one while it is read takes away pages that are
/// still needed; there is nothing to go on with.
#[cfg(unix)]
pub(super) fn explain() {
    const MESSAGE: &[u8] = b"error: a file became shorter while it was read\n";

    extern "C" fn end(_signal: libc::c_int) {
        // SAFETY: `write` and `_exit` are among the few functions that a signal's handler may call; the message is
        // static.
        unsafe {
            libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(super::EXIT_ERROR.into());
        }
    }

    let handler: extern "C" fn(libc::c_int) = end;
    // SAFETY: the action is zeroed, which is a valid value of all its fields, and then filled in; the handler does only
    // what handlers may do, on the stack that Rust has set up for signals.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

#[cfg(not(unix))]
pub(super) fn explain() {}
