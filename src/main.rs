//! The program. All code is in the library, so that it can be tested and reused.

use std::process::ExitCode;

fn main() -> ExitCode {
    harpoon::cli::main()
}
