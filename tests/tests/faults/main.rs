//! Processes that are killed, disks that fill, peers that are silent or hostile.
//!
//! One program for all of them: each program of tests is linked with the whole of Lethe, which
//! takes longer than to run it.

mod authority;
mod crash;
mod full_disk;
mod hostile;
mod killed;
mod old_folders;
mod one_folder;
mod one_peer;
mod restore;
mod silent;
