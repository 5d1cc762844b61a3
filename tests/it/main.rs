//! One integration binary for all rooms.

mod acceptance;
mod attribution;
mod circuit_commands;
mod circuits;
mod command_line;
mod docs;
mod export;
mod graph;
mod hostile;
mod intervene;
mod intervene_commands;
mod job;
mod kernels;
mod layouts;
mod model;
mod ops;
mod prune;
mod reference;
mod rooms;
mod smollm2;
mod support;
mod transpose;
mod weights;
mod weights_gguf;
mod writers;
