//! One integration binary for all rooms.

mod attribution;
mod command_line;
mod export;
mod graph;
mod prune;
mod reference;
mod rooms;
mod smollm2;
mod support;
mod weights;
mod weights_gguf;
