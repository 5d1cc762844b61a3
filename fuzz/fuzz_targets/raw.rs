#![no_main]

circuitscope_fuzz::target!("raw");
