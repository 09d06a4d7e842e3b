// Tiled product: 32x32 of C for each workgroup, 4x4 for each invocation, 32 of K a step: one block
// of a quantised row. A_T: A lies as [k, m]; B_T: B lies as [n, k], as weights do in a forward.
//
// Each invocation brings a 4x4 piece of either operand into the tiles, whose vectors run along the
// rows of A and the columns of B. The ninth vector of a row keeps rows apart in the banks.
const LANE: u32 = 9u;
var<workgroup> tile_a: array<vec4<f32>, 288>;
var<workgroup> tile_b: array<vec4<f32>, 288>;

// Zero from `end` on.
fn cut(v: vec4<f32>, first: u32, end: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, vec4(first, first + 1u, first + 2u, first + 3u) < vec4(end));
}

fn a4(i: u32) -> vec4<f32> {
    let at = p.a_off + i;
    return vec4(a[at], a[at + 1u], a[at + 2u], a[at + 3u]);
}

// Row `row` of A, k..k + 4; or row `k` of a transposed A, row..row + 4.
fn load_a(row: u32, k: u32) -> vec4<f32> {
    if row >= p.m || k >= p.k { return vec4<f32>(); }
    if A_T { return cut(a4(k * p.lda + row), row, p.m); }
    return cut(a4(row * p.lda + k), k, p.k);
}

fn load_b(col: u32, k: u32) -> vec4<f32> {
    if col >= p.n || k >= p.k { return vec4<f32>(); }
    if B_T { return cut(weights(p.b_off + col * p.ldb + k), k, p.k); }
    return cut(weights(p.b_off + k * p.ldb + col), col, p.n);
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_id) lid: vec3<u32>) {
    let row0 = wid.y * 32u;
    let col0 = wid.x * 32u;
    var acc0 = vec4<f32>(); var acc1 = vec4<f32>(); var acc2 = vec4<f32>(); var acc3 = vec4<f32>();
    // Neighbouring invocations read neighbouring pieces of memory.
    let fast = lid.x * 4u;
    for (var k0 = 0u; k0 < p.k; k0 += 32u) {
        if A_T {
            for (var j = 0u; j < 4u; j++) {
                let k = lid.y * 4u + j;
                tile_a[k * LANE + lid.x] = load_a(row0 + fast, k0 + k);
            }
        } else {
            let row = row0 + lid.y * 4u;
            let piece = transpose(mat4x4(
                load_a(row, k0 + fast), load_a(row + 1u, k0 + fast),
                load_a(row + 2u, k0 + fast), load_a(row + 3u, k0 + fast)));
            for (var j = 0u; j < 4u; j++) { tile_a[(fast + j) * LANE + lid.y] = piece[j]; }
        }
        if B_T {
            let col = col0 + lid.y * 4u;
            let piece = transpose(mat4x4(
                load_b(col, k0 + fast), load_b(col + 1u, k0 + fast),
                load_b(col + 2u, k0 + fast), load_b(col + 3u, k0 + fast)));
            for (var j = 0u; j < 4u; j++) { tile_b[(fast + j) * LANE + lid.y] = piece[j]; }
        } else {
            for (var j = 0u; j < 4u; j++) {
                let k = lid.y * 4u + j;
                tile_b[k * LANE + lid.x] = load_b(col0 + fast, k0 + k);
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let rows = tile_a[k * LANE + lid.y];
            let cols = tile_b[k * LANE + lid.x];
            acc0 += rows.x * cols;
            acc1 += rows.y * cols;
            acc2 += rows.z * cols;
            acc3 += rows.w * cols;
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
