//! Readers of foreign files. Everything in a file is consumed or refused by name, and every size
//! is compared with the file's length before anything is allocated.

pub(crate) mod keys;
pub(crate) mod templates;
pub(crate) mod tensors;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::ModelError;

/// The bytes of a file of at most `most` bytes.
///
/// # Errors
/// [`ModelError::Refused`] for a longer one, before it is read.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>, ModelError> {
    let file = File::open(path).map_err(ModelError::io(path))?;
    let length = file.metadata().map_err(ModelError::io(path))?.len();
    if length > most {
        return Err(ModelError::refused(
            path,
            format!("{length} bytes"),
            format!("such a file has at most {most}"),
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // A file that grows meanwhile is not read further than it was said to be long.
    file.take(length)
        .read_to_end(&mut bytes)
        .map_err(ModelError::io(path))?;
    Ok(bytes)
}

/// A text of a file as it is quoted in an error: short, and without what a terminal would obey.
pub(crate) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    format!("\"{}{dots}\"", short.escape_debug())
}
