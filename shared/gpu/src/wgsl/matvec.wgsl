// The product for few rows: a workgroup for each element of C, which splits K among its 64
// invocations and adds their sums in a fixed order.
var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    let at_a = p.a_off + wid.y * p.lda;
    let at_b = p.b_off + wid.x * p.ldb;
    for (var k = local; k < p.k; k += 64u) {
        sum += a[at_a + k] * weight(at_b + k);
    }
    sums[local] = sum;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half { sums[local] += sums[local + half]; }
    }
    if local == 0u { store(wid.y, wid.x, sums[0]); }
}
