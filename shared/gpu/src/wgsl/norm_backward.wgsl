// Adds to the gradient of the input.
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let at = wid.x * p.width;
    let r = inverse(local, at);
    var mine = 0.0;
    for (var i = local; i < p.width; i += 64u) { mine += dy[at + i] * gain[i] * x[at + i]; }
    let shared_part = total(local, mine) * r * r * r / f32(p.width);
    for (var i = local; i < p.width; i += 64u) {
        dx[at + i] += dy[at + i] * gain[i] * r - x[at + i] * shared_part;
    }
}
