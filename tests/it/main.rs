//! One integration binary for all rooms.

mod export;
mod graph;
mod prune;
mod reference;
