//! The records of a snapshot.

use crate::codec::{Reader, Writer};
use crate::field::Field;
use crate::part::Refused;
use crate::rows::{Row, Rows};
use crate::snapshot::bits::{BitReader, BitWriter};
use crate::snapshot::packed::{MOST_ENTRIES, PackedRows, RowPacking, pack};
use crate::snapshot::{Packing, SnapshotError};
use crate::sums::MAX_ITEMS;
use crate::tables::{Columns, Derived, Tables};

const MAGIC: &[u8] = b"lethe snapshot 1\n";
/// Sections: columns, EASE, far, near, unseen, field.
pub(super) const SECTIONS: usize = 6;
/// The widest field.
pub(super) const MAX_RANK: usize = 1_024;
/// The highest rating, in quarter stars.
pub(super) const MOST_QUARTERS: usize = 20;
/// The longest record: a row with all items of a large catalogue would be longer, but rows are cut.
const MAX_RECORD: usize = 1 << 20;
/// Levels per factor of two of what was met lately.
const RECENT_PER_OCTAVE: f64 = 32.0;
/// Fractions of a star in which means of unrated items are given.
const GUESS_UNIT: f64 = 32.0;

/// A snapshot as its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) header: Vec<u8>,
    pub(super) sections: [Vec<Vec<u8>>; SECTIONS],
}

impl From<Refused> for SnapshotError {
    fn from(e: Refused) -> Self {
        Self::Damaged(e.to_string())
    }
}

impl Records {
    pub(super) fn of(tables: &Tables, packing: &Packing) -> Self {
        let items = tables.items() as u32;
        let table = |rows: &Rows, cut: &Cut| -> Vec<Vec<u8>> {
            let mut row = Row::default();
            (0..items)
                .map(|item| {
                    rows.read(item, &mut row);
                    pack(&cut.apply(&row, tables), items, &packing.rows)
                })
                .collect()
        };
        let [ease, far, near] = Cut::of(&packing.rows, tables);
        let (scales, field) = pack_field(&tables.field, items, packing);
        let mut header = Writer::default();
        header.number(u64::from(items));
        header.signed(i64::from(tables.day));
        header.number(u64::from(tables.like_boundary));
        header.number(u64::from(packing.rows.bits));
        header.number(u64::from(packing.field_bits));
        header.number(scales.len() as u64);
        scales.iter().for_each(|s| header.f32(*s));
        // The solve bounds the weights of an unmet item, not how many unmet items one item speaks
        // for: that is bounded here.
        let mut row = Row::default();
        let unseen = (0..items).map(|item| {
            tables.unseen.read(item, &mut row);
            pack(&row.cut(MOST_ENTRIES), items, &packing.rows)
        });
        let unseen = unseen.collect();
        Self {
            header: header.into_bytes(),
            sections: [
                (0..items as usize).map(|i| column(tables, i)).collect(),
                table(&tables.ease, &ease),
                table(&tables.next, &far),
                table(&tables.near, &near),
                unseen,
                field,
            ],
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(MAGIC);
        out.number(self.header.len() as u64);
        out.bytes(&self.header);
        for section in &self.sections {
            for record in section {
                out.number(record.len() as u64);
                out.bytes(record);
            }
        }
        out.into_bytes()
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut from = Reader::new(bytes);
        if from.take(MAGIC.len())? != MAGIC {
            return Err(SnapshotError::Damaged("the first line differs".into()));
        }
        let length = from.count(MAX_RECORD, "bytes of header")?;
        let header = from.take(length)?.to_vec();
        let items = Reader::new(&header).count(MAX_ITEMS, "items")?;
        // A record takes a byte at least: what is allocated is bounded by what was sent.
        if items > bytes.len() / SECTIONS {
            let why = format!("{items} items in {} bytes", bytes.len());
            return Err(SnapshotError::Damaged(why));
        }
        let mut sections: [Vec<Vec<u8>>; SECTIONS] = Default::default();
        for section in &mut sections {
            for _ in 0..items {
                let length = from.count(MAX_RECORD, "bytes of a record")?;
                section.push(from.take(length)?.to_vec());
            }
        }
        from.end()?;
        Ok(Self { header, sections })
    }

    pub(super) fn tables(&self) -> Result<Tables, SnapshotError> {
        let mut from = Reader::new(&self.header);
        let items = from.count(MAX_ITEMS, "items")?;
        let day = i32::try_from(from.signed()?).map_err(|e| from.bad(e.to_string()))?;
        let like_boundary = from.count(MOST_QUARTERS, "quarter stars")? as u8;
        let row_bits = from.count(8, "bits of a row's value")? as u32;
        let field_bits = from.count(8, "bits of the field")? as u32;
        if row_bits < 2 || field_bits < 2 {
            return Err(SnapshotError::Damaged("fewer than 2 bits".into()));
        }
        let width = from.count(MAX_RANK, "columns of the field")?;
        let mut scales = vec![];
        for _ in 0..width {
            scales.push(from.f32()?);
        }
        from.end()?;
        let [columns, ease, next, near, unseen, field] = &self.sections;
        let mut out = Columns::default();
        let mut recent = vec![];
        let mut guess = vec![];
        for record in columns {
            read_column(record, &mut out, &mut recent, &mut guess)?;
        }
        let table = |records: &[Vec<u8>], what: &str| -> Result<Rows, SnapshotError> {
            let mut rows = PackedRows::new(items as u32, row_bits);
            for (item, record) in records.iter().enumerate() {
                rows.push(record).ok_or_else(|| {
                    SnapshotError::Damaged(format!("row {item} of {what} is malformed"))
                })?;
            }
            Ok(Rows::Packed(rows))
        };
        Ok(Tables {
            day,
            like_boundary,
            derived: Derived::of(&out, &recent, &guess),
            columns: out,
            recent,
            guess,
            ease: table(ease, "EASE")?,
            next: table(next, "the far transitions")?,
            near: table(near, "the near transitions")?,
            unseen: table(unseen, "unseen items")?,
            field: read_field(field, scales, field_bits)?,
        })
    }
}

/// Which entries of a row are kept. The powers were chosen on validation events
/// (`docs/recommend.md`): cut by magnitude alone, the near transitions keep rare items of which
/// little is known, and lose the popular ones that lists are made of.
struct Cut {
    keep: usize,
    /// Importance is magnitude times this factor of the item: a power of its share.
    factors: Vec<f64>,
    /// Whether the background becomes the mean over all items, each by its share.
    centred: bool,
}

impl Cut {
    /// Of EASE, the far and the near transitions.
    fn of(packing: &RowPacking, tables: &Tables) -> [Self; 3] {
        let keep = packing.keep.min(MOST_ENTRIES);
        let power = |power: f64| -> Vec<f64> {
            let items = 0..tables.items() as u32;
            items.map(|i| libm::pow(tables.share(i), power)).collect()
        };
        [
            Self {
                keep,
                factors: power(0.0),
                centred: false,
            },
            Self {
                keep: keep.div_ceil(2),
                factors: power(-0.5),
                centred: false,
            },
            Self {
                keep,
                factors: power(0.5),
                centred: true,
            },
        ]
    }

    fn apply(&self, row: &Row, tables: &Tables) -> Row {
        // A row that is not cut stays as it is: there is nothing to centre for.
        if row.columns.len() <= self.keep {
            return row.clone();
        }
        let mut row = row.clone();
        if self.centred {
            let entries = row.columns.iter().zip(&row.values);
            let mean: f64 = entries.map(|(c, v)| tables.share(*c) * f64::from(*v)).sum();
            row.background += mean as f32;
            row.values.iter_mut().for_each(|v| *v -= mean as f32);
        }
        row.cut_by(self.keep, |column, value| {
            f64::from(value.abs()) * self.factors[column as usize]
        })
    }
}

/// People who met the item, what was met first, who rated it, half stars and likes or the guessed
/// mean, what was met lately.
fn column(tables: &Tables, item: usize) -> Vec<u8> {
    let columns = &tables.columns;
    let mut out = Writer::default();
    out.number(columns.seen[item]);
    out.number(columns.starts[item]);
    out.number(columns.rated[item]);
    if columns.rated[item] > 0 {
        out.number(columns.half_stars[item]);
        out.number(columns.likes[item]);
    } else {
        let guess = (f64::from(tables.guess[item]) * GUESS_UNIT).round();
        out.signed(guess as i64);
    }
    let recent = f64::from(tables.recent[item]);
    // One tenth of an encounter, a month ago, is not worth a level.
    let level = (libm::log2(recent / 0.05) * RECENT_PER_OCTAVE).round();
    out.number(if level > 0.0 { level as u64 } else { 0 });
    out.into_bytes()
}

fn read_column(
    record: &[u8],
    columns: &mut Columns,
    recent: &mut Vec<f32>,
    guess: &mut Vec<f32>,
) -> Result<(), SnapshotError> {
    let mut from = Reader::new(record);
    let seen = from.number()?;
    let starts = from.number()?;
    let rated = from.number()?;
    let mut half_stars = 0;
    let mut likes = 0;
    let mut guessed = 0.0;
    if rated > 0 {
        half_stars = from.number()?;
        likes = from.number()?;
    } else {
        guessed = from.signed()?.clamp(-256, 256) as f64 / GUESS_UNIT;
    }
    let people = u64::from(u32::MAX);
    if seen > people
        || starts > 64 * 16 * people
        || rated > people
        || half_stars > 10 * rated
        || likes > rated
    {
        return Err(SnapshotError::Damaged("counts that contradict".into()));
    }
    let level = from.count(4_096, "levels of what was met lately")?;
    from.end()?;
    columns.seen.push(seen);
    columns.starts.push(starts);
    columns.rated.push(rated);
    columns.half_stars.push(half_stars);
    columns.likes.push(likes);
    recent.push(match level {
        0 => 0.0,
        level => (0.05 * libm::exp2(level as f64 / RECENT_PER_OCTAVE)) as f32,
    });
    guess.push(guessed as f32);
    Ok(())
}

/// Scales of the columns, and the codes of every item.
fn pack_field(field: &Field, items: u32, packing: &Packing) -> (Vec<f32>, Vec<Vec<u8>>) {
    let width = packing.rank.min(field.width()).min(MAX_RANK);
    let most = f64::from((1 << (packing.field_bits - 1)) - 1);
    let mut largest = vec![0.0f64; width];
    let mut row = vec![];
    for item in 0..items {
        field.read(item, &mut row);
        for (max, value) in largest.iter_mut().zip(&row) {
            *max = max.max(value.abs());
        }
    }
    let scales: Vec<f32> = largest.iter().map(|m| (m / most) as f32).collect();
    let records = (0..items).map(|item| {
        field.read(item, &mut row);
        let mut out = BitWriter::default();
        for (value, scale) in row[..width].iter().zip(&scales) {
            let code = if *scale > 0.0 {
                (value / f64::from(*scale)).round().clamp(-most, most)
            } else {
                0.0
            };
            out.bits((code + most) as u32, packing.field_bits);
        }
        out.into_bytes()
    });
    let records = records.collect();
    (scales, records)
}

fn read_field(records: &[Vec<u8>], scales: Vec<f32>, bits: u32) -> Result<Field, SnapshotError> {
    let most = (1 << (bits - 1)) - 1;
    let mut codes = Vec::with_capacity(records.len() * scales.len());
    for (item, record) in records.iter().enumerate() {
        let mut from = BitReader::new(record);
        for _ in 0..scales.len() {
            codes.push((from.bits(bits) as i32 - most) as i8);
        }
        if !from.at_end() {
            let why = format!("row {item} of the field is malformed");
            return Err(SnapshotError::Damaged(why));
        }
    }
    Ok(Field::packed(codes, scales))
}
