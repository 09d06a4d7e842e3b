// SwiGLU (Shazeer, 2020): silu(gate) * up, both in one buffer [rows, 2 * width].
struct Params { count: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn element(id: u32) {
    let at = (id / p.width) * 2u * p.width + id % p.width;
    let g = gate_up[at];
    y[id] = g / (1.0 + exp(-g)) * gate_up[at + p.width];
}
