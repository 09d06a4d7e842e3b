@group(0) @binding(2) var<storage, read> w: array<u32>;
fn weight(i: u32) -> f32 {
    let half = (w[i / 2u] >> (16u * (i & 1u))) & 0xffffu;
    return bitcast<f32>(half << 16u);
}
