// Gradients of keys and values: a workgroup for each row and key head, over the queries that see
// it, 64 a step. No atomics, so the sums have one order.
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read> d_context: array<f32>;
@group(0) @binding(6) var<storage, read> delta: array<f32>;
@group(0) @binding(7) var<storage, read_write> d_qkv: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let key = wid.x;
    let at_k = key * p.kv_stride + p.k_off + wid.y * p.dim;
    let at_v = key * p.kv_stride + p.v_off + wid.y * p.dim;
    for (var d = local; d < p.dim; d += 64u) {
        head_a[d] = kv[at_k + d];
        head_b[d] = kv[at_v + d];
    }
    let end = info[key].w;
    var dk = array<f32, 4>(0.0, 0.0, 0.0, 0.0);
    var dv = array<f32, 4>(0.0, 0.0, 0.0, 0.0);
    for (var head = wid.y * p.group; head < (wid.y + 1u) * p.group; head++) {
        for (var base = key; base < end; base += 64u) {
            workgroupBarrier();
            let row = base + local;
            var weight = 0.0;
            var ds = 0.0;
            if row < end && (key < info[row].x || key >= info[row].y) {
                let at_q = row * p.q_stride + head * p.dim;
                let at = row * p.heads + head;
                var score = 0.0;
                var dp = 0.0;
                for (var d = 0u; d < p.dim; d++) {
                    score += head_a[d] * q[at_q + d];
                    dp += head_b[d] * d_context[at * p.dim + d];
                }
                weight = exp(score * p.scale - lse[at]);
                ds = weight * (dp - delta[at]) * p.scale;
            }
            tile_a[local] = weight;
            tile_b[local] = ds;
            workgroupBarrier();
            let count = min(64u, end - base);
            for (var c = 0u; c < 4u; c++) {
                let d = local + 64u * c;
                if d < p.dim {
                    for (var j = 0u; j < count; j++) {
                        let at = ((base + j) * p.heads + head) * p.dim + d;
                        dv[c] += tile_a[j] * d_context[at];
                        dk[c] += tile_b[j] * q[(base + j) * p.q_stride + head * p.dim + d];
                    }
                }
            }
        }
    }
    for (var c = 0u; c < 4u; c++) {
        let d = local + 64u * c;
        if d < p.dim {
            d_qkv[at_k + d] = dk[c];
            d_qkv[at_v + d] = dv[c];
        }
    }
}
