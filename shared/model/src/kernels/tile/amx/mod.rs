//! AMX: products of tiles of 16 rows of 64 bytes (Intel's Architecture Reference, volume 1, chapter
//! 18).
//!
//! A panel of pairs of bf16, `[pair of inputs][32 outputs]`, is two tiles side by side as it lies
//! in memory: 16 pairs of inputs, of 16 outputs each, 128 bytes apart. So weights have one layout
//! for AVX-512 and AMX.
//!
//! The instructions are assembly: the compiler's intrinsics for them are not stable.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

pub(super) mod bf16;
#[cfg(test)]
pub(in crate::kernels) mod emulator;

/// Rows of a block: two tiles of 16.
pub(in crate::kernels) const ROWS: usize = 32;

/// Whether the CPU has AMX for bf16 and 8 bits, the system saves its state, and this process was
/// given leave to use it. Asks for leave when first called; leave holds for all threads.
pub(super) fn permitted() -> bool {
    cpu_has_tiles() && asks_leave()
}

fn cpu_has_tiles() -> bool {
    /// Leaf 7, EDX: AMX-BF16, AMX-TILE, AMX-INT8.
    const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// Leaf 1, ECX: the system uses XSAVE, so that XGETBV exists.
    const OSXSAVE: u32 = 1 << 27;
    /// XCR0: tile configuration and tile data.
    const STATE: u64 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    if __cpuid_count(7, 0).edx & TILES != TILES {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: XGETBV of register 0 is allowed where OSXSAVE is set; it changes only EAX and EDX.
    unsafe {
        asm!(
            "xgetbv",
            in("ecx") 0,
            lateout("eax") low,
            lateout("edx") high,
            options(nomem, nostack, preserves_flags),
        );
    }
    (u64::from(high) << 32 | u64::from(low)) & STATE == STATE
}

/// Asks the system for leave to use tile data: Linux enables it per process, when asked.
#[cfg(target_os = "linux")]
fn asks_leave() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call with two numbers; it touches no memory of ours. The kernel overwrites
    // RCX and R11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Other systems: not tried, so not used.
#[cfg(not(target_os = "linux"))]
fn asks_leave() -> bool {
    false
}

/// What LDTILECFG reads: palette 1, and the shape of every tile.
#[derive(Debug)]
#[repr(C, align(64))]
pub(in crate::kernels) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Tiles 0 to 3 are sums of 16 x 16; 4 and 5 hold rows of `bytes` bytes, 6 and 7 weights of as
    /// many inputs.
    const fn new(bytes: u16) -> Self {
        let mut row_bytes = [0; 16];
        let mut rows = [0; 16];
        let mut tile = 0;
        while tile < 8 {
            row_bytes[tile] = if tile == 4 || tile == 5 { bytes } else { 64 };
            rows[tile] = if tile < 6 { 16 } else { (bytes / 4) as u8 };
            tile += 1;
        }
        Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes,
            rows,
        }
    }
}

/// 32 inputs of two bytes.
pub(in crate::kernels) static BF16: Config = Config::new(64);

/// Tiles in use by this thread. They are released at the end, so that no thread waits with tile
/// data that the system would have to save, and the core leaves the state that costs power.
pub(in crate::kernels) struct Configured {
    /// Of one thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Configured {
    /// # Safety
    /// [`permitted`]; nothing else on this thread uses tiles meanwhile.
    pub(in crate::kernels) unsafe fn new(config: &Config) -> Self {
        // SAFETY: `config` is a valid configuration of 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                config = in(reg) config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
        Self {
            _thread: std::marker::PhantomData,
        }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the thread has tiles in use (`new`); nothing needs them any more.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}
