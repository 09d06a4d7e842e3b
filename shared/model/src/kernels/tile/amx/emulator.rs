//! AMX on a CPU that has none, for tests: a handler of SIGILL carries out the instructions that
//! [`super`] uses and steps over them, so that the assembly itself (addresses, strides, order of
//! registers, configuration) runs on every x86-64 Linux.
//!
//! Semantics: Intel's Software Developer's Manual, volume 2 (TILELOADD, TILESTORED, TDPBF16PS,
//! TDPBSUD, LDTILECFG). What is not known here ends the process, as it would without the handler.

use std::cell::UnsafeCell;
use std::sync::Once;

const TILE: usize = 16 * 64;

/// The tile registers of a thread.
struct Tiles {
    configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    data: [[u8; TILE]; 8],
}

thread_local! {
    static TILES: UnsafeCell<Tiles> = const {
        UnsafeCell::new(Tiles {
            configured: false,
            rows: [0; 8],
            row_bytes: [0; 8],
            data: [[0; TILE]; 8],
        })
    };
}

/// Whether this thread has tiles in use.
pub(in crate::kernels) fn in_use() -> bool {
    // SAFETY: no instruction is being carried out on this thread now.
    TILES.with(|t| unsafe { (*t.get()).configured })
}

/// Carries out AMX instructions in this process from now on; a CPU that has them is left alone.
/// False where neither is possible.
pub(in crate::kernels) fn install() -> bool {
    static ONCE: Once = Once::new();
    if super::permitted() {
        return true;
    }
    if !cfg!(target_os = "linux") {
        return false;
    }
    ONCE.call_once(|| {
        // SAFETY: a zeroed action is a valid one; the handler has the signature that SA_SIGINFO
        // asks for.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "no handler of SIGILL");
    });
    true
}

extern "C" fn on_illegal(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the system hands over the context of the interrupted thread, which waits for us.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the instruction lies at RIP; the longest of them has 10 bytes, and code follows it.
    let code = unsafe { std::slice::from_raw_parts(at, 10) };
    let done = Instruction::decode(code).and_then(|i| {
        // SAFETY: this thread is inside the instruction: nobody else uses its tiles.
        let tiles = TILES.with(|t| unsafe { &mut *t.get() });
        i.carry_out(tiles, |r| registers[REGISTERS[r] as usize] as usize)
            .then_some(i.length)
    });
    match done {
        Some(length) => registers[libc::REG_RIP as usize] += length as i64,
        // SAFETY: always allowed.
        None => unsafe { libc::abort() },
    }
}

/// General registers in the order of their numbers.
const REGISTERS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// `base + index * scale + displacement`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Memory {
    base: usize,
    index: Option<usize>,
    shift: u8,
    displacement: isize,
}

/// A VEX-encoded instruction of map 0F38.
#[derive(Debug, PartialEq)]
struct Instruction {
    opcode: u8,
    /// Mandatory prefix: none, 66, F3, F2.
    prefix: u8,
    /// ModRM.reg.
    reg: usize,
    /// ModRM.rm, where it names a register.
    rm: usize,
    /// VEX.vvvv.
    third: usize,
    memory: Option<Memory>,
    length: usize,
}

impl Instruction {
    fn decode(code: &[u8]) -> Option<Self> {
        let &[0xc4, first, second, opcode, modrm, ..] = code else {
            return None;
        };
        let high = |bit: u8| if first >> bit & 1 == 0 { 8 } else { 0 };
        // Map 0F38, W0, 128 bits.
        if first & 0x1f != 2 || second & 0x84 != 0 {
            return None;
        }
        let mut this = Self {
            opcode,
            prefix: second & 3,
            reg: usize::from(modrm >> 3 & 7) + high(7),
            rm: usize::from(modrm & 7) + high(5),
            third: usize::from(!(second >> 3) & 15),
            memory: None,
            length: 5,
        };
        let mode = modrm >> 6;
        if mode == 3 {
            return Some(this);
        }
        let mut memory = Memory {
            base: this.rm,
            index: None,
            shift: 0,
            displacement: 0,
        };
        if modrm & 7 == 4 {
            let sib = code[this.length];
            this.length += 1;
            memory.base = usize::from(sib & 7) + high(5);
            let index = usize::from(sib >> 3 & 7) + high(6);
            // Number 4 means none.
            memory.index = (index != 4).then_some(index);
            memory.shift = sib >> 6;
        }
        match mode {
            // Without a base, or relative to RIP: not used.
            0 if memory.base & 7 == 5 => return None,
            0 => {}
            1 => {
                memory.displacement = code[this.length] as i8 as isize;
                this.length += 1;
            }
            _ => {
                let bytes = code.get(this.length..this.length + 4)?;
                memory.displacement = i32::from_le_bytes(bytes.try_into().ok()?) as isize;
                this.length += 4;
            }
        }
        this.memory = Some(memory);
        Some(this)
    }

    /// False if it is none of ours, or not allowed now.
    fn carry_out(&self, tiles: &mut Tiles, register: impl Fn(usize) -> usize) -> bool {
        let start = |m: Memory| register(m.base).wrapping_add_signed(m.displacement);
        match (self.opcode, self.prefix, self.memory) {
            (0x49, 0, Some(m)) => tiles.configure(start(m) as *const u8),
            _ if !tiles.configured => false,
            (0x49, 0, None) => {
                tiles.configured = false;
                tiles.data = [[0xff; TILE]; 8];
                true
            }
            (0x49, 3, None) => tiles.zero(self.reg),
            (0x4b, 3 | 2, Some(m)) => {
                let stride = m.index.map_or(0, |i| register(i) << m.shift);
                tiles.transfer(self.reg, start(m), stride, self.prefix == 2)
            }
            (0x5c, 2, None) => tiles.bf16(self.reg, self.rm, self.third),
            (0x5e, 2, None) => tiles.signed_unsigned(self.reg, self.rm, self.third),
            _ => false,
        }
    }
}

impl Tiles {
    fn configure(&mut self, at: *const u8) -> bool {
        // SAFETY: LDTILECFG reads 64 bytes.
        let config = unsafe { std::slice::from_raw_parts(at, 64) };
        let valid = config[0] == 1 && config[1] == 0 && config[2..16].iter().all(|b| *b == 0);
        for t in 0..8 {
            self.row_bytes[t] =
                usize::from(config[16 + 2 * t]) + 256 * usize::from(config[17 + 2 * t]);
            self.rows[t] = usize::from(config[48 + t]);
        }
        self.data = [[0; TILE]; 8];
        self.configured = true;
        valid && self.rows.iter().all(|r| *r <= 16) && self.row_bytes.iter().all(|b| *b <= 64)
    }

    fn zero(&mut self, tile: usize) -> bool {
        self.data[tile] = [0; TILE];
        true
    }

    fn transfer(&mut self, tile: usize, start: usize, stride: usize, store: bool) -> bool {
        let bytes = self.row_bytes[tile];
        if !store {
            self.data[tile] = [0; TILE];
        }
        for row in 0..self.rows[tile] {
            let memory = start.wrapping_add(row.wrapping_mul(stride)) as *mut u8;
            let register = &mut self.data[tile][row * 64..][..bytes];
            // SAFETY: the addresses that the instruction names, as on a CPU that has it.
            unsafe {
                if store {
                    memory.copy_from_nonoverlapping(register.as_ptr(), bytes);
                } else {
                    register
                        .as_mut_ptr()
                        .copy_from_nonoverlapping(memory, bytes);
                }
            }
        }
        true
    }

    /// Whether the shapes of a product fit each other and its registers differ.
    fn fits(&self, sums: usize, a: usize, b: usize) -> bool {
        self.rows[sums] == self.rows[a]
            && self.row_bytes[sums] == self.row_bytes[b]
            && self.row_bytes[a] / 4 == self.rows[b]
            && sums != a
            && sums != b
            && a != b
    }

    fn quad(&self, tile: usize, row: usize, at: usize) -> [u8; 4] {
        let from = &self.data[tile][row * 64 + 4 * at..][..4];
        [from[0], from[1], from[2], from[3]]
    }

    fn bf16(&mut self, sums: usize, a: usize, b: usize) -> bool {
        if !self.fits(sums, a, b) {
            return false;
        }
        for row in 0..self.rows[a] {
            for n in 0..self.row_bytes[sums] / 4 {
                let mut chains = [0.0f32; 2];
                for k in 0..self.row_bytes[a] / 4 {
                    let (x, w) = (self.quad(a, row, k), self.quad(b, k, n));
                    for (half, chain) in chains.iter_mut().enumerate() {
                        let value = |q: [u8; 4]| {
                            flushed(f32::from_le_bytes([0, 0, q[2 * half], q[2 * half + 1]]))
                        };
                        *chain = flushed(value(x).mul_add(value(w), *chain));
                    }
                }
                let both = flushed(chains[0] + chains[1]);
                let old = flushed(f32::from_le_bytes(self.quad(sums, row, n)));
                self.set(sums, row, n, flushed(old + both).to_le_bytes());
            }
        }
        true
    }

    fn signed_unsigned(&mut self, sums: usize, a: usize, b: usize) -> bool {
        if !self.fits(sums, a, b) {
            return false;
        }
        for row in 0..self.rows[a] {
            for n in 0..self.row_bytes[sums] / 4 {
                let mut sum = i32::from_le_bytes(self.quad(sums, row, n));
                for k in 0..self.row_bytes[a] / 4 {
                    let (x, w) = (self.quad(a, row, k), self.quad(b, k, n));
                    for i in 0..4 {
                        sum = sum.wrapping_add(i32::from(x[i] as i8) * i32::from(w[i]));
                    }
                }
                self.set(sums, row, n, sum.to_le_bytes());
            }
        }
        true
    }

    fn set(&mut self, tile: usize, row: usize, at: usize, value: [u8; 4]) {
        self.data[tile][row * 64 + 4 * at..][..4].copy_from_slice(&value);
    }
}

/// Denormal numbers count as zero, with their sign.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0f32.copysign(x)
    } else {
        x
    }
}

#[test]
fn decodes_what_the_assembler_writes() {
    // tileloadd tmm4, [rbx + rax*1 + 0x400]
    let load = Instruction::decode(&[0xc4, 0xe2, 0x7b, 0x4b, 0xa4, 0x03, 0, 4, 0, 0]);
    let load = load.expect("a load");
    assert_eq!(
        (load.opcode, load.prefix, load.reg, load.length),
        (0x4b, 3, 4, 10)
    );
    let memory = Memory {
        base: 3,
        index: Some(0),
        shift: 0,
        displacement: 0x400,
    };
    assert_eq!(load.memory, Some(memory));
    // tilestored [r14 + rax*1 + 64], tmm0
    let store = Instruction::decode(&[0xc4, 0xc2, 0x7a, 0x4b, 0x44, 0x06, 0x40, 0, 0, 0]);
    let store = store.expect("a store");
    assert_eq!(
        store.memory.map(|m| (m.base, m.displacement)),
        Some((14, 64))
    );
    // tdpbf16ps tmm0, tmm4, tmm6
    let product = Instruction::decode(&[0xc4, 0xe2, 0x4a, 0x5c, 0xc4, 0, 0, 0, 0, 0]);
    let product = product.expect("a product");
    assert_eq!((product.reg, product.rm, product.third), (0, 4, 6));
}
