@group(0) @binding(2) var<storage, read> w: array<f32>;
// Weights i..i + 4.
fn weights(i: u32) -> vec4<f32> { return vec4(w[i], w[i + 1u], w[i + 2u], w[i + 3u]); }
