//! Code of others that panics on input that it does not like.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether this thread runs code whose panics are answers.
    static IS_FOREIGN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `code`; a panic in it becomes an error with the panic's message, and nothing is printed.
///
/// What `code` borrows mutably may be left half changed after an error, so that it must be dropped then.
///
/// # Errors
/// The message of the panic.
pub(super) fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_FOREIGN.get() {
                usual(panic);
            }
        }));
    });
    let before = IS_FOREIGN.replace(true);
    let result = catch_unwind(AssertUnwindSafe(code));
    IS_FOREIGN.set(before);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("it makes the tokenizer fail: {}", text.unwrap_or("for no reason that it tells"))
    })
}
