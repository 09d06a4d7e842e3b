// The entry of kernels that compute one element for each invocation: `element` of the kernel, for
// each of `count` elements of its parameters. The grid has two dimensions: one is too short.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let id = (wid.y * groups.x + wid.x) * 64u + local;
    if id >= p.count { return; }
    element(id);
}
