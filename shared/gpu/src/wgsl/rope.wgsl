// Rotary positions (Su et al., 2021) in place, on pairs half a head apart, of the first `heads`
// heads of each row; `sign` -1 turns back.
struct Params { count: u32, width: u32, heads: u32, pairs: u32, sign: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> sines: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

fn element(id: u32) {
    let pair = id % p.pairs;
    let head = (id / p.pairs) % p.heads;
    let row = id / (p.pairs * p.heads);
    let at = row * p.width + head * 2u * p.pairs + pair;
    let c = cosines[row * p.pairs + pair];
    let s = sines[row * p.pairs + pair] * p.sign;
    let u = x[at];
    let v = x[at + p.pairs];
    x[at] = u * c - v * s;
    x[at + p.pairs] = v * c + u * s;
}
