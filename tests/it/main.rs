//! One integration binary for all rooms.

mod support;
mod weights;
mod weights_gguf;
