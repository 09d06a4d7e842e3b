//! `lethe-admin`, for tests that use it as people do.

fn main() -> std::process::ExitCode {
    lethe_admin::run(std::env::args_os())
}
