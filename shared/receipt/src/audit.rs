//! What an auditor needs to train a shard again on another machine and compare every byte. It names
//! nobody: people are keys of records, in the coordinator's order; their data comes from their
//! devices, by those who agree. The log's key signs all of it: what the records and the log's entry
//! do not fix (rounds, adapter, engine) is what the operator said, and nobody else.

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::hex::{hex, unhex32};
use crate::note::{NoteError, SignedNote, Signer, VerifierKey, open_note};
use crate::receipt::{Logged, VerifyError, check_logged};
use crate::records::Records;
use crate::statement::canonical;

/// Version of the format. Version 1 was not signed as a whole, and is refused.
pub const VERSION: u32 = 2;
/// Largest bundle that is read, in bytes.
pub const MAX_BUNDLE: usize = 4 << 20;

/// A person's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Key of the record, hexadecimal.
    pub key: String,
    /// Salted commitment to the training data, hexadecimal: what the device's export must open.
    pub data: String,
    /// Slice, 0-based.
    pub slice: u16,
}

/// A round that the shard's adapter stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// Stage, 1-based.
    pub stage: u16,
    /// Round of the stage, 0-based.
    pub round: u16,
    /// Whose updates were aggregated: positions in [`Bundle::members`], ascending.
    pub members: Vec<u32>,
    /// The round of the stage that each of them was begun in, where some were late (`staleness` in
    /// the recipe); empty where none was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<u16>,
}

/// The version of the catalogue that an epoch's prompts are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueOf {
    /// Its number.
    pub number: u32,
    /// Names it, hexadecimal: the log has its manifest ([`crate::manifest`]).
    pub digest: String,
}

/// A shard's training, for an auditor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// [`VERSION`].
    pub version: u32,
    /// The recipe, JSON.
    pub recipe: String,
    /// What the log says that the shard is trained on.
    pub training: Logged,
    /// Everybody whose data the shard is trained on.
    pub members: Vec<Member>,
    /// All rounds, in order.
    pub rounds: Vec<Round>,
    /// Adapter of the shard, SHA-256, hexadecimal: what training again must give.
    pub adapter: String,
    /// What computed the coordinator's layers; other arithmetic may give other last bits.
    pub engine: String,
    /// Signed head of the log.
    pub checkpoint: String,
    /// The version of the catalogue; none where no version was ever applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalogue: Option<CatalogueOf>,
    /// Note of the log's key about the SHA-256 of this bundle with an empty string in this place.
    /// None in version 1.
    #[serde(default)]
    pub signed: String,
}

impl Bundle {
    /// The text that is signed.
    fn text(&self) -> String {
        let unsigned = Self {
            signed: String::new(),
            ..self.clone()
        };
        let sha256 = hex(digest(&SHA256, &canonical(&unsigned)).as_ref());
        format!("lethe audit bundle {VERSION}\nsha256 {sha256}\n")
    }

    /// The bundle with the log's signature.
    ///
    /// # Errors
    /// [`NoteError`] for a signer whose name is the first line.
    pub fn signed_by(self, signer: &Signer) -> Result<Self, NoteError> {
        let signed = signer.note(&self.text())?;
        Ok(Self { signed, ..self })
    }

    /// Reads a bundle and checks that the log, under this key, has signed all of it, and committed
    /// to exactly these records before training. The bytes must be exactly as issued.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(bytes: &[u8], key: &VerifierKey) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_BUNDLE {
            return Err(VerifyError::Format(format!(
                "{} bytes, at most {MAX_BUNDLE}",
                bytes.len()
            )));
        }
        let b: Self =
            serde_json::from_slice(bytes).map_err(|e| VerifyError::Format(e.to_string()))?;
        if b.version != VERSION {
            return Err(VerifyError::Format(format!(
                "version {}, this build knows {VERSION}: `lethe-admin export-audit` of this \
                 version makes one",
                b.version
            )));
        }
        if canonical(&b) != bytes {
            return Err(VerifyError::Format(
                "its bytes differ from the canonical form".into(),
            ));
        }
        if open_note(&b.signed, key)? != b.text() {
            return Err(VerifyError::Format(
                "the log's key has signed another bundle".into(),
            ));
        }
        SignedNote::parse(&b.checkpoint)?.only(&[key])?;
        let shard = b.training.training.shard;
        let bad = |why| VerifyError::Records { shard, why };
        let root = check_logged(&b.training, &b.checkpoint, key)?;
        let record = |m: &Member| Some((unhex32(&m.key)?, unhex32(&m.data)?));
        let records: Option<Vec<_>> = b.members.iter().map(record).collect();
        let records =
            records.ok_or_else(|| bad("a key or commitment is not 32 bytes, hexadecimal"))?;
        let records = Records::new(records);
        if records.root() != root || records.count() != b.training.training.count {
            return Err(bad("its records are not those that the log committed to"));
        }
        let mut last = None;
        for r in &b.rounds {
            let begun = |i: usize| r.begun.get(i).copied().unwrap_or(r.round);
            let whole = r.begun.is_empty() || r.begun.len() == r.members.len();
            let keys: Vec<(u32, u16)> = r
                .members
                .iter()
                .enumerate()
                .map(|(i, m)| (*m, begun(i)))
                .collect();
            let sorted = whole
                && keys.windows(2).all(|w| w[0] < w[1])
                && keys.iter().all(|(_, begun)| *begun <= r.round);
            // A stage trains on the slices before it.
            let allowed = |m: &u32| {
                b.members
                    .get(*m as usize)
                    .is_some_and(|m| m.slice < r.stage)
            };
            if last >= Some((r.stage, r.round)) || !sorted || !r.members.iter().all(allowed) {
                return Err(bad(
                    "a round is out of order, or has somebody whose slice comes later",
                ));
            }
            last = Some((r.stage, r.round));
        }
        Ok(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Tree;
    use crate::receipt::logged;
    use crate::statement::{Kind, Training, entry};

    fn bundle() -> (Bundle, VerifierKey) {
        let member = |i: u8| Member {
            key: hex(&[i; 32]),
            data: hex(&[i + 100; 32]),
            slice: u16::from(i % 2),
        };
        let members: Vec<Member> = (0..3).map(|i| member(i + 1)).collect();
        let records = Records::new((1..4).map(|i| ([i; 32], [i + 100; 32])));
        let training = Training {
            version: crate::statement::TRAINING_VERSION,
            shard: 1,
            generation: 3,
            root: hex(&records.root()),
            count: 3,
            recipe: "r".into(),
            seed: 1,
            base_model: "m".into(),
            build: "b".into(),
        };
        let mut tree = Tree::default();
        tree.push(b"another");
        tree.push(&entry(Kind::Training, &[9; 32], &canonical(&training)));
        let signer = Signer::from_seed("log", &[7; 32]).expect("a signer");
        let round = |stage, members: &[u32]| Round {
            stage,
            round: 0,
            members: members.to_vec(),
            begun: vec![],
        };
        let b = Bundle {
            version: VERSION,
            recipe: "{}".into(),
            training: logged(training, &[9; 32], 1, &tree).expect("is in it"),
            members,
            rounds: vec![round(1, &[1]), round(2, &[0, 1, 2])],
            adapter: hex(&[5; 32]),
            engine: "e".into(),
            checkpoint: signer.checkpoint(tree.len(), &tree.root()),
            catalogue: None,
            signed: String::new(),
        };
        let b = b.signed_by(&signer).expect("signs");
        (b, signer.verifier().clone())
    }

    #[test]
    fn every_change_is_refused() {
        let (good, key) = bundle();
        let verify = |b: &Bundle| Bundle::verify(&canonical(b), &key);
        assert_eq!(verify(&good).expect("verifies"), good);
        // Who has the key can sign what does not fit; everybody else can change nothing.
        let signer = Signer::from_seed("log", &[7; 32]).expect("a signer");
        let changes: [&dyn Fn(&mut Bundle); 12] = [
            &|b| b.adapter = hex(&[6; 32]),
            &|b| b.engine = "another".into(),
            &|b| b.recipe = "{ }".into(),
            &|b| b.members[0].data = hex(&[0; 32]),
            &|b| drop(b.members.pop()),
            &|b| b.training.training.count = 2,
            &|b| b.training.index = 0,
            &|b| b.rounds[0].members = vec![0],
            &|b| b.rounds[1].members = vec![2, 1],
            &|b| b.rounds.swap(0, 1),
            &|b| b.rounds[1].begun = vec![0],
            &|b| b.rounds[1].begun = vec![0, 9, 0],
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut b = good.clone();
            change(&mut b);
            assert!(verify(&b).is_err(), "change {i}");
            let signed = b.signed_by(&signer).expect("signs");
            assert_eq!(verify(&signed).is_ok(), i < 3, "change {i}, signed");
        }
        let other = Signer::from_seed("log", &[8; 32]).expect("a signer");
        assert!(Bundle::verify(&canonical(&good), other.verifier()).is_err());
    }
}
