// GGUF Q8_0: 34 bytes for 32 weights: f16 scale, 32 signed bytes. Blocks begin at odd half words,
// too.
@group(0) @binding(2) var<storage, read> w: array<u32>;
// Weights i..i + 4, for an i that 4 divides.
fn weights(i: u32) -> vec4<f32> {
    let block = (i / 32u) * 34u;
    let scale = half_at(block);
    let bytes = bitcast<i32>(word_at(block + 2u + i % 32u));
    // The shifts to the top and back carry the signs.
    let q = vec4(bytes << 24u, bytes << 16u, bytes << 8u, bytes) >> vec4(24u);
    return vec4<f32>(q) * scale;
}
