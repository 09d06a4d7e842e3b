// Reads at an even byte of the words `w`.
fn half_at(at: u32) -> f32 {
    return unpack2x16float(w[at / 4u] >> ((at % 4u) * 8u)).x;
}
fn word_at(at: u32) -> u32 {
    let low = w[at / 4u];
    if at % 4u == 0u { return low; }
    return (low >> 16u) | (w[at / 4u + 1u] << 16u);
}
