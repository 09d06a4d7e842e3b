@group(0) @binding(2) var<storage, read> w: array<u32>;
fn weight(i: u32) -> f32 {
    let pair = unpack2x16float(w[i / 2u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}
// Weights i..i + 4.
fn weights(i: u32) -> vec4<f32> {
    return vec4(weight(i), weight(i + 1u), weight(i + 2u), weight(i + 3u));
}
