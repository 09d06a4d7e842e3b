// Gradient of SwiGLU: of gate and of up, in one buffer [rows, 2 * width].
struct Params { count: u32, width: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> d_gate_up: array<f32>;

fn element(id: u32) {
    let at = (id / p.width) * 2u * p.width + id % p.width;
    let g = gate_up[at];
    let sigmoid = 1.0 / (1.0 + exp(-g));
    d_gate_up[at] = dy[id] * gate_up[at + p.width] * sigmoid * (1.0 + g * (1.0 - sigmoid));
    d_gate_up[at + p.width] = dy[id] * g * sigmoid;
}
