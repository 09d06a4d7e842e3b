// C[m, n] = alpha * op(A) op(B) (+ C) (+ extra), and what both bodies of the product share. The
// operand B is read through `weights`, four at a time, which comes from the snippet of its format.
struct Params {
    m: u32, n: u32, k: u32,
    a_off: u32, lda: u32,
    b_off: u32, ldb: u32,
    c_off: u32, ldc: u32,
    // 1: add to C. 2: add `extra`, a bias (stride 0) or a residual.
    flags: u32,
    extra_off: u32, extra_stride: u32,
    alpha: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> extra: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

fn store(row: u32, col: u32, sum: f32) {
    if row >= p.m || col >= p.n { return; }
    let at = p.c_off + row * p.ldc + col;
    var v = p.alpha * sum;
    if (p.flags & 1u) != 0u { v += c[at]; }
    if (p.flags & 2u) != 0u { v += extra[p.extra_off + row * p.extra_stride + col]; }
    c[at] = v;
}
