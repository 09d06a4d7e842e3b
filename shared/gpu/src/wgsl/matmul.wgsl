// Tiled product: 32x32 of C for each workgroup, 4x4 for each invocation, 32 of K a step: one block
// of a quantised row. A_T: A lies as [k, m]; B_T: B lies as [n, k], as weights do in a forward.
const LANE: u32 = 36u;
var<workgroup> tile_a: array<f32, 1152>;
var<workgroup> tile_b: array<f32, 1152>;

fn load_a(row: u32, k: u32) -> f32 {
    if row >= p.m || k >= p.k { return 0.0; }
    if A_T { return a[p.a_off + k * p.lda + row]; }
    return a[p.a_off + row * p.lda + k];
}

fn load_b(col: u32, k: u32) -> f32 {
    if col >= p.n || k >= p.k { return 0.0; }
    if B_T { return weight(p.b_off + col * p.ldb + k); }
    return weight(p.b_off + k * p.ldb + col);
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_id) lid: vec3<u32>) {
    let local = lid.y * 8u + lid.x;
    let row0 = wid.y * 32u;
    let col0 = wid.x * 32u;
    var acc0 = vec4<f32>(); var acc1 = vec4<f32>(); var acc2 = vec4<f32>(); var acc3 = vec4<f32>();
    for (var k0 = 0u; k0 < p.k; k0 += 32u) {
        for (var s = 0u; s < 16u; s++) {
            // Neighbouring invocations read neighbouring words of either operand.
            let fast = (s * 64u + local) % 32u;
            let slow = (s * 64u + local) / 32u;
            if A_T { tile_a[slow * LANE + fast] = load_a(row0 + fast, k0 + slow); }
            else { tile_a[fast * LANE + slow] = load_a(row0 + slow, k0 + fast); }
            if B_T { tile_b[fast * LANE + slow] = load_b(col0 + slow, k0 + fast); }
            else { tile_b[slow * LANE + fast] = load_b(col0 + fast, k0 + slow); }
        }
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let ia = k * LANE + lid.y * 4u;
            let ib = k * LANE + lid.x * 4u;
            let b = vec4(tile_b[ib], tile_b[ib + 1u], tile_b[ib + 2u], tile_b[ib + 3u]);
            acc0 += tile_a[ia] * b;
            acc1 += tile_a[ia + 1u] * b;
            acc2 += tile_a[ia + 2u] * b;
            acc3 += tile_a[ia + 3u] * b;
        }
        workgroupBarrier();
    }
    let row = row0 + lid.y * 4u;
    let col = col0 + lid.x * 4u;
    for (var j = 0u; j < 4u; j++) {
        store(row, col + j, acc0[j]);
        store(row + 1u, col + j, acc1[j]);
        store(row + 2u, col + j, acc2[j]);
        store(row + 3u, col + j, acc3[j]);
    }
}
