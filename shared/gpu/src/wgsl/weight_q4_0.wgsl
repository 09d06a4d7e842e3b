// GGUF Q4_0: 18 bytes for 32 weights: f16 scale, 16 bytes of nibbles less 8; the low ones are
// weights 0..15. Blocks begin at odd half words, too.
@group(0) @binding(2) var<storage, read> w: array<u32>;
fn byte_at(at: u32) -> u32 { return (w[at / 4u] >> ((at % 4u) * 8u)) & 255u; }
fn weight(i: u32) -> f32 {
    let block = (i / 32u) * 18u;
    let e = i % 32u;
    let scale = unpack2x16float(byte_at(block) | (byte_at(block + 1u) << 8u)).x;
    let q = (byte_at(block + 2u + e % 16u) >> ((e / 16u) * 4u)) & 15u;
    return (f32(q) - 8.0) * scale;
}
