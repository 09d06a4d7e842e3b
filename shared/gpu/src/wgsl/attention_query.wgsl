// Gradient of the queries, and `delta`, the product of the result and its gradient, for the
// gradient of keys and values: a workgroup for each row and head.
@group(0) @binding(4) var<storage, read> context: array<f32>;
@group(0) @binding(5) var<storage, read> lse: array<f32>;
@group(0) @binding(6) var<storage, read> d_context: array<f32>;
@group(0) @binding(7) var<storage, read_write> delta: array<f32>;
@group(0) @binding(8) var<storage, read_write> d_qkv: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = wid.x;
    let head = wid.y;
    let at_head = (head / p.group) * p.dim;
    let at_q = row * p.q_stride + head * p.dim;
    let at_context = (row * p.heads + head) * p.dim;
    var mine = 0.0;
    for (var d = local; d < p.dim; d += 64u) {
        head_a[d] = q[at_q + d];
        head_b[d] = d_context[at_context + d];
        mine += head_b[d] * context[at_context + d];
    }
    tile_a[local] = mine;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half { tile_a[local] += tile_a[local + half]; }
    }
    workgroupBarrier();
    let product = tile_a[0];
    if local == 0u { delta[row * p.heads + head] = product; }
    let norm = lse[row * p.heads + head];
    let seen = info[row];
    var acc = array<f32, 4>(0.0, 0.0, 0.0, 0.0);
    for (var base = 0u; base < seen.z; base += 64u) {
        workgroupBarrier();
        let key = base + local;
        var ds = 0.0;
        if key < seen.z {
            let at = key_row(seen, key) * p.kv_stride + at_head;
            var score = 0.0;
            var dp = 0.0;
            for (var d = 0u; d < p.dim; d++) {
                score += head_a[d] * kv[at + p.k_off + d];
                dp += head_b[d] * kv[at + p.v_off + d];
            }
            ds = exp(score * p.scale - norm) * (dp - product) * p.scale;
        }
        tile_a[local] = ds;
        workgroupBarrier();
        let count = min(64u, seen.z - base);
        for (var c = 0u; c < 4u; c++) {
            let d = local + 64u * c;
            if d < p.dim {
                var v = acc[c];
                for (var j = 0u; j < count; j++) {
                    let at = key_row(seen, base + j) * p.kv_stride + p.k_off + at_head;
                    v += tile_a[j] * kv[at + d];
                }
                acc[c] = v;
            }
        }
    }
    for (var c = 0u; c < 4u; c++) {
        let d = local + 64u * c;
        if d < p.dim { d_qkv[at_q + d] = acc[c]; }
    }
}
