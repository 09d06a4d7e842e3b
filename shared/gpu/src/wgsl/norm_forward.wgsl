@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let at = wid.x * p.width;
    let r = inverse(local, at);
    for (var i = local; i < p.width; i += 64u) { y[at + i] = x[at + i] * r * gain[i]; }
}
