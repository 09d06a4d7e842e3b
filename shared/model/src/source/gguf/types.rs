//! How GGUF files store values (ggml.h of ggml-org/ggml), by number.

use crate::dtype::Dtype;

/// A type: its name, values and bytes of a block, and how it is read, if it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) read: Option<Dtype>,
}

/// The types that are read, for errors.
pub(super) const SUPPORTED: &str = "supported: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, \
                                    Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

/// The type with number `id`; `None` if no such type was known when this was written.
pub(super) fn kind(id: u32) -> Option<Kind> {
    let read = |name, dtype| {
        Some(Kind {
            name,
            read: Some(dtype),
        })
    };
    let other = |name| Some(Kind { name, read: None });
    match id {
        0 => read("F32", Dtype::F32),
        1 => read("F16", Dtype::F16),
        2 => read("Q4_0", Dtype::Q4_0),
        3 => read("Q4_1", Dtype::Q4_1),
        4 => other("Q4_2"),
        5 => other("Q4_3"),
        6 => read("Q5_0", Dtype::Q5_0),
        7 => read("Q5_1", Dtype::Q5_1),
        8 => read("Q8_0", Dtype::Q8_0),
        9 => other("Q8_1"),
        10 => read("Q2_K", Dtype::Q2K),
        11 => read("Q3_K", Dtype::Q3K),
        12 => read("Q4_K", Dtype::Q4K),
        13 => read("Q5_K", Dtype::Q5K),
        14 => read("Q6_K", Dtype::Q6K),
        15 => other("Q8_K"),
        16 => other("IQ2_XXS"),
        17 => other("IQ2_XS"),
        18 => other("IQ3_XXS"),
        19 => other("IQ1_S"),
        20 => other("IQ4_NL"),
        21 => other("IQ3_S"),
        22 => other("IQ2_S"),
        23 => other("IQ4_XS"),
        24 => other("I8"),
        25 => other("I16"),
        26 => other("I32"),
        27 => other("I64"),
        28 => other("F64"),
        29 => other("IQ1_M"),
        30 => read("BF16", Dtype::Bf16),
        31 => other("Q4_0_4_4"),
        32 => other("Q4_0_4_8"),
        33 => other("Q4_0_8_8"),
        34 => other("TQ1_0"),
        35 => other("TQ2_0"),
        36 => other("IQ4_NL_4_4"),
        37 => other("IQ4_NL_4_8"),
        38 => other("IQ4_NL_8_8"),
        39 => other("MXFP4"),
        40 => other("NVFP4"),
        _ => None,
    }
}
