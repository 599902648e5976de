#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| harpoon::fuzzing::run("layer", data));
