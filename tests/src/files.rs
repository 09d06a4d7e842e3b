//! Files as a user has them, for tests that run programs.

use std::fmt::Write;
use std::path::Path;

/// Writes a data set of `people` with `events` each into a folder: dataset.toml, items and ratings
/// of 1 to 5 stars, a like from 4 on.
///
/// # Panics
/// The folder cannot be written.
pub fn write_data(folder: &Path, people: u32, events: u32) {
    std::fs::create_dir_all(folder).expect("makes the folder");
    let spec = "[interactions]\nfile = \"ratings.csv\"\nuser = \"user\"\nitem = \"item\"\n\
                rating = \"stars\"\ntimestamp = \"when\"\nlike_above = 3.0\n\
                [items]\nfile = \"items.csv\"\nitem = \"id\"\ntitle = \"title\"\n";
    let mut items = String::from("id,title\n");
    let mut ratings = String::from("user,item,stars,when\n");
    for i in 0..events {
        writeln!(items, "{i},Film {i}").expect("a string takes it");
        for u in 0..people {
            let when = 1_700_000_000 + 1000 * i + u;
            let stars = 1 + (u + i) % 5;
            writeln!(ratings, "u{u},{i},{stars},{when}").expect("a string takes it");
        }
    }
    for (name, text) in [
        ("dataset.toml", spec),
        ("items.csv", &items),
        ("ratings.csv", &ratings),
    ] {
        std::fs::write(folder.join(name), text).expect("writes a file");
    }
}
