@group(0) @binding(2) var<storage, read> w: array<u32>;
fn weight(i: u32) -> f32 {
    let half = (w[i / 2u] >> (16u * (i & 1u))) & 0xffffu;
    return bitcast<f32>(half << 16u);
}
// Weights i..i + 4.
fn weights(i: u32) -> vec4<f32> {
    return vec4(weight(i), weight(i + 1u), weight(i + 2u), weight(i + 3u));
}
