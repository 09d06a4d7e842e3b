// Copies `width` columns of rows between buffers of different strides. With `mapped`, row i comes
// from row map[i], and rows whose map is the largest u32 become zero: gather and scatter in one.
struct Params {
    count: u32, width: u32,
    from_off: u32, from_stride: u32,
    to_off: u32, to_stride: u32,
    mapped: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> from_rows: array<f32>;
@group(0) @binding(2) var<storage, read> map: array<u32>;
@group(0) @binding(3) var<storage, read_write> to_rows: array<f32>;

fn element(id: u32) {
    let row = id / p.width;
    let col = id % p.width;
    var source = row;
    if p.mapped != 0u { source = map[row]; }
    var v = 0.0;
    if source != 0xffffffffu { v = from_rows[p.from_off + source * p.from_stride + col]; }
    to_rows[p.to_off + row * p.to_stride + col] = v;
}
