// GGUF Q8_0: 34 bytes for 32 weights: f16 scale, 32 signed bytes. Blocks begin at odd half words,
// too.
@group(0) @binding(2) var<storage, read> w: array<u32>;
fn byte_at(at: u32) -> u32 { return (w[at / 4u] >> ((at % 4u) * 8u)) & 255u; }
fn weight(i: u32) -> f32 {
    let block = (i / 32u) * 34u;
    let scale = unpack2x16float(byte_at(block) | (byte_at(block + 1u) << 8u)).x;
    // The shift to the top and back carries the sign.
    let q = bitcast<i32>(byte_at(block + 2u + i % 32u) << 24u) >> 24u;
    return f32(q) * scale;
}
