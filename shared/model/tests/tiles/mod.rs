/// Whether this computer runs products with the tile kernels.
pub(crate) fn tile_kernels_run() -> bool {
    #[cfg(target_arch = "x86_64")]
    let can = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let can = cfg!(target_arch = "aarch64");
    can && std::env::var_os("LETHE_KERNELS").is_none_or(|v| v != "portable")
}
