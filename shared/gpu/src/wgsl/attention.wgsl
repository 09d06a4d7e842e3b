// What the attention kernels share. Row i sees rows 0..context of the shared prefix, then rows
// start.. of its own run up to itself: info[i] = (context, start, keys that it sees, one past the
// last row that sees it). Query, key and value may lie in different buffers (a cache) or in one.
struct Params {
    heads: u32, group: u32, dim: u32, rows: u32,
    q_stride: u32, kv_stride: u32, k_off: u32, v_off: u32,
    scale: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> kv: array<f32>;
@group(0) @binding(3) var<storage, read> info: array<vec4<u32>>;
// Vectors of a head, at most MAX_DIM long.
var<workgroup> head_a: array<f32, 256>;
var<workgroup> head_b: array<f32, 256>;
var<workgroup> tile_a: array<f32, 64>;
var<workgroup> tile_b: array<f32, 64>;

fn key_row(seen: vec4<u32>, key: u32) -> u32 {
    return select(seen.y + key - seen.x, key, key < seen.x);
}
