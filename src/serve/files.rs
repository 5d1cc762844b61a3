//! The files of the page, part of the program: `web/` as it is, listed by the build script.

/// Names and bytes, sorted by name.
pub(super) static PAGE: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/page.rs"));
