// GGUF Q4_0: 18 bytes for 32 weights: f16 scale, 16 bytes of nibbles less 8; the low ones are
// weights 0..15. Blocks begin at odd half words, too.
@group(0) @binding(2) var<storage, read> w: array<u32>;
// Weights i..i + 4, for an i that 4 divides: a word's low nibbles, or its high ones.
fn weights(i: u32) -> vec4<f32> {
    let block = (i / 32u) * 18u;
    let e = i % 32u;
    let scale = half_at(block);
    let nibbles = word_at(block + 2u + e % 16u) >> ((e / 16u) * 4u);
    let q = vec4(nibbles, nibbles >> 8u, nibbles >> 16u, nibbles >> 24u) & vec4(15u);
    return (vec4<f32>(q) - 8.0) * scale;
}
