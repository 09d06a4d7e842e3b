// GGUF Q4_1: 20 bytes for 32 weights: f16 scale, f16 minimum, 16 bytes of nibbles; the low ones are
// weights 0..15.
@group(0) @binding(2) var<storage, read> w: array<u32>;
// Weights i..i + 4, for an i that 4 divides: a word's low nibbles, or its high ones.
fn weights(i: u32) -> vec4<f32> {
    let block = (i / 32u) * 5u;
    let e = i % 32u;
    let scale = unpack2x16float(w[block]);
    let nibbles = w[block + 1u + (e % 16u) / 4u] >> ((e / 16u) * 4u);
    let q = vec4(nibbles, nibbles >> 8u, nibbles >> 16u, nibbles >> 24u) & vec4(15u);
    return vec4<f32>(q) * scale.x + scale.y;
}
