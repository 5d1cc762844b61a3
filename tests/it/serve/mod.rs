//! The server, asked without a network; what needs one is in `sockets`.

mod access;
mod dialects;
mod graphs;
mod jobs;
mod kit;
mod published;
mod sockets;
mod views;
