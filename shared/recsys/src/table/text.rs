//! Whether bytes are text, and which.

use serde::{Deserialize, Serialize};

/// How a file's letters are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// UTF-8.
    #[serde(rename = "utf-8", alias = "utf8")]
    Utf8,
    /// Windows-1252, which has all that Latin-1 has.
    #[serde(rename = "windows-1252", alias = "latin-1", alias = "iso-8859-1")]
    Windows1252,
}

/// What 0x80 to 0x9F are in Windows-1252 (WHATWG Encoding Standard); 0: nothing.
const HIGH: [u16; 32] = [
    0x20AC, 0, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039,
    0x0152, 0, 0x017D, 0, 0, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x02DC,
    0x2122, 0x0161, 0x203A, 0x0153, 0, 0x017E, 0x0178,
];

/// A byte as Windows-1252 has it; `None`: it is no letter there.
fn windows_1252(byte: u8) -> Option<char> {
    let code = match byte
        .checked_sub(0x80)
        .and_then(|i| HIGH.get(usize::from(i)))
    {
        Some(0) => return None,
        Some(code) => u32::from(*code),
        None => u32::from(byte),
    };
    char::from_u32(code)
}

/// A field's text, and whether it had to be read as Windows-1252 without being told so.
///
/// # Errors
/// What is wrong with the bytes.
pub(crate) fn decode(bytes: &[u8], encoding: Option<Encoding>) -> Result<(String, bool), String> {
    let utf8 = match encoding {
        Some(Encoding::Windows1252) => None,
        _ => std::str::from_utf8(bytes).ok(),
    };
    if let Some(text) = utf8 {
        return Ok((text.to_owned(), false));
    }
    if encoding == Some(Encoding::Utf8) {
        return Err("bytes that are no UTF-8: save the file as UTF-8".into());
    }
    let letter = |b: &u8| {
        windows_1252(*b).ok_or_else(|| format!("byte 0x{b:02X} is neither UTF-8 nor Windows-1252"))
    };
    let text: String = bytes.iter().map(letter).collect::<Result<_, _>>()?;
    Ok((text, encoding.is_none()))
}

/// UTF-8's byte order mark.
const MARK: &[u8] = b"\xEF\xBB\xBF";

/// What a file is that is no text, and what to do about it; `None`: it may be text.
pub(crate) fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 11] = [
        (b"\x1F\x8B", "a gzip file: unpack it first"),
        (
            b"PK\x03\x04",
            "a zip file (or a spreadsheet): unpack it, or save it as CSV",
        ),
        (b"BZh", "a bzip2 file: unpack it first"),
        (b"\xFD7zXZ\0", "an xz file: unpack it first"),
        (b"\x28\xB5\x2F\xFD", "a zstd file: unpack it first"),
        (b"PAR1", "a Parquet file: write it as CSV"),
        (b"SQLite format 3\0", "a database: write its table as CSV"),
        (
            b"\xD0\xCF\x11\xE0",
            "a spreadsheet or document of Office: save it as CSV",
        ),
        (b"%PDF-", "a PDF: text is needed"),
        (b"\xFF\xFE", "text in UTF-16: save it as UTF-8"),
        (b"\xFE\xFF", "text in UTF-16: save it as UTF-8"),
    ];
    let known = KINDS.iter().find(|(magic, _)| bytes.starts_with(magic));
    known.map(|(_, what)| *what).or_else(|| without_mark(bytes))
}

/// UTF-16 without a mark: every other byte of its Latin letters is 0.
fn without_mark(bytes: &[u8]) -> Option<&'static str> {
    let head = bytes.get(..bytes.len().min(4096)).unwrap_or_default();
    let zeros = |from: usize| {
        head.iter()
            .skip(from)
            .step_by(2)
            .filter(|b| **b == 0)
            .count()
    };
    let many = head.len() / 5;
    let even = zeros(0);
    let odd = zeros(1);
    (many > 1 && even.max(odd) > many && even.min(odd) * 8 <= even.max(odd))
        .then_some("text in UTF-16: save it as UTF-8")
}

/// Without UTF-8's byte order mark.
pub(crate) fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(MARK).unwrap_or(bytes)
}

/// The text of a description.
///
/// # Errors
/// What it is instead.
pub(crate) fn spec_text(bytes: &[u8]) -> Result<&str, &'static str> {
    if let Some(what) = other_kind(bytes) {
        return Err(what);
    }
    std::str::from_utf8(without_bom(bytes)).map_err(|_| "no UTF-8: save it as UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_1252_is_read_as_what_it_is() {
        let bytes = b"The Baker\x92s \x93Caf\xE9\x94 \x8020";
        let (text, guessed) = decode(bytes, None).expect("letters");
        assert_eq!(
            text,
            "The Baker\u{2019}s \u{201C}Caf\u{e9}\u{201D} \u{20AC}20"
        );
        assert!(guessed);
        assert!(
            !decode(bytes, Some(Encoding::Windows1252))
                .expect("letters")
                .1
        );
        assert!(decode(bytes, Some(Encoding::Utf8)).is_err());
        assert!(decode(b"\x81", None).expect_err("nothing").contains("0x81"));
        assert_eq!(
            decode("é".as_bytes(), None).expect("text"),
            ("é".into(), false)
        );
    }

    #[test]
    fn what_is_no_text_is_named() {
        let utf16 = |swap: bool| -> Vec<u8> {
            let unit = |u: u16| {
                if swap {
                    u.to_be_bytes()
                } else {
                    u.to_le_bytes()
                }
            };
            "id,title\n1,Heat\n".encode_utf16().flat_map(unit).collect()
        };
        for (bytes, says) in [
            (b"\x1F\x8B\x08".to_vec(), "gzip"),
            (b"PK\x03\x04".to_vec(), "zip"),
            (b"\xFF\xFEi\0".to_vec(), "UTF-16"),
            (utf16(false), "UTF-16"),
            (utf16(true), "UTF-16"),
        ] {
            assert!(other_kind(&bytes).expect(says).contains(says));
        }
        assert_eq!(other_kind(b"id,title\n1,H\0eat\n"), None);
        assert_eq!(other_kind(b""), None);
        assert_eq!(without_bom(b"\xEF\xBB\xBFid"), b"id");
    }
}
