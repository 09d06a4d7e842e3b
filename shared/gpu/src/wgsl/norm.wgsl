// RMSNorm (Zhang and Sennrich, 2019): a workgroup for each row.
struct Params { width: u32, eps: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
var<workgroup> sums: array<f32, 64>;

fn total(local: u32, mine: f32) -> f32 {
    workgroupBarrier();
    sums[local] = mine;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half { sums[local] += sums[local + half]; }
    }
    workgroupBarrier();
    return sums[0];
}

fn inverse(local: u32, at: u32) -> f32 {
    var squares = 0.0;
    for (var i = local; i < p.width; i += 64u) { squares += x[at + i] * x[at + i]; }
    return 1.0 / sqrt(total(local, squares) / f32(p.width) + p.eps);
}
