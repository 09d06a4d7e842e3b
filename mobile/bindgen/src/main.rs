//! Writes the Kotlin, Swift and Python side of `lethe-ffi` from its library: `mobile/generate`
//! calls it. A program of its own, so that apps' builds have nothing of a generator.

fn main() {
    uniffi::uniffi_bindgen_main();
}
