#![no_main]

circuitscope_fuzz::target!("shards");
