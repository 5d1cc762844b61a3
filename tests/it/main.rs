//! One integration binary for all rooms.

mod acceptance;
mod attribution;
mod export;
mod graph;
mod intervene;
mod ops;
mod prune;
mod reference;
mod rooms;
mod transpose;
