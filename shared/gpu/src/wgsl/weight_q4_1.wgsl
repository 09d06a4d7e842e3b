// GGUF Q4_1: 20 bytes for 32 weights: f16 scale, f16 minimum, 16 bytes of nibbles; the low ones are
// weights 0..15.
@group(0) @binding(2) var<storage, read> w: array<u32>;
fn weight(i: u32) -> f32 {
    let block = (i / 32u) * 5u;
    let e = i % 32u;
    let scale = unpack2x16float(w[block]);
    let byte = e % 16u;
    let shift = (byte % 4u) * 8u + (e / 16u) * 4u;
    let q = (w[block + 1u + byte / 4u] >> shift) & 15u;
    return f32(q) * scale.x + scale.y;
}
