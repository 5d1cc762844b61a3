//! One integration binary for all rooms.

mod attribution;
mod export;
mod graph;
mod prune;
mod reference;
mod rooms;
