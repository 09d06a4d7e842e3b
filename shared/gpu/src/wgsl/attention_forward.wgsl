// Attention with an online softmax (Milakov and Gimelshein, 2018; FlashAttention, Dao et al.,
// 2022): a workgroup for each row and head, 64 keys a step. Keeps the log-sum-exp.
@group(0) @binding(4) var<storage, read_write> context: array<f32>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = wid.x;
    let head = wid.y;
    let at_head = (head / p.group) * p.dim;
    for (var d = local; d < p.dim; d += 64u) {
        head_a[d] = q[row * p.q_stride + head * p.dim + d] * p.scale;
    }
    workgroupBarrier();
    let seen = info[row];
    var top = -3.0e38;
    var sum = 0.0;
    var acc = array<f32, 4>(0.0, 0.0, 0.0, 0.0);
    for (var base = 0u; base < seen.z; base += 64u) {
        let key = base + local;
        var score = -3.0e38;
        if key < seen.z {
            let at = key_row(seen, key) * p.kv_stride + p.k_off + at_head;
            score = 0.0;
            for (var d = 0u; d < p.dim; d++) { score += head_a[d] * kv[at + d]; }
        }
        tile_b[local] = score;
        for (var half = 32u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if local < half { tile_b[local] = max(tile_b[local], tile_b[local + half]); }
        }
        workgroupBarrier();
        let new_top = max(top, tile_b[0]);
        tile_a[local] = select(0.0, exp(score - new_top), key < seen.z);
        workgroupBarrier();
        let keep = exp(top - new_top);
        top = new_top;
        let count = min(64u, seen.z - base);
        sum *= keep;
        for (var j = 0u; j < count; j++) { sum += tile_a[j]; }
        for (var c = 0u; c < 4u; c++) {
            let d = local + 64u * c;
            if d < p.dim {
                var v = acc[c] * keep;
                for (var j = 0u; j < count; j++) {
                    let at = key_row(seen, base + j) * p.kv_stride + p.v_off + at_head;
                    v += tile_a[j] * kv[at + d];
                }
                acc[c] = v;
            }
        }
        workgroupBarrier();
    }
    for (var c = 0u; c < 4u; c++) {
        let d = local + 64u * c;
        if d < p.dim { context[(row * p.heads + head) * p.dim + d] = acc[c] / sum; }
    }
    if local == 0u { lse[row * p.heads + head] = top + log(sum); }
}
