//! `lethe-admin`: see the library.

fn main() -> std::process::ExitCode {
    lethe_admin::run(std::env::args_os())
}
