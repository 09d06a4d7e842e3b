// The product for few rows: a workgroup for each element of C, which splits K among its 64
// invocations, four weights at a time, and adds their sums in a fixed order.
var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    let at_a = p.a_off + wid.y * p.lda;
    let at_b = p.b_off + wid.x * p.ldb;
    let end = vec4(p.k);
    for (var k = 4u * local; k < p.k; k += 256u) {
        let at = at_a + k;
        let x = vec4(a[at], a[at + 1u], a[at + 2u], a[at + 3u]);
        let inside = vec4(k, k + 1u, k + 2u, k + 3u) < end;
        sum += dot(select(vec4<f32>(), x, inside), select(vec4<f32>(), weights(at_b + k), inside));
    }
    sums[local] = sum;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half { sums[local] += sums[local + half]; }
    }
    if local == 0u { store(wid.y, wid.x, sums[0]); }
}
