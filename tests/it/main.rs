//! One integration binary for all rooms.

mod acceptance;
mod attribution;
mod circuit_commands;
mod circuits;
mod command_line;
mod export;
mod graph;
mod intervene;
mod intervene_commands;
mod kernels;
mod layouts;
mod ops;
mod prune;
mod reference;
mod rooms;
mod sampled;
mod smollm2;
mod support;
mod transpose;
mod weights;
mod weights_gguf;
