//! Recipes in files of the user's: errors name the file, its line and the key.

use std::path::Path;

use lethe_recsys::spelling::hint;
use serde::Deserialize;

use crate::{Recipe, RecipeError};

/// A configuration with a recipe in it; its other keys are somebody else's.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    recipe: toml::Table,
}

/// The same, to find out what is wrong with the recipe's keys.
#[derive(Deserialize)]
struct Checked {
    #[serde(default)]
    #[allow(dead_code)]
    recipe: Recipe,
}

impl Recipe {
    /// From the file at `path`, whose text is `text`.
    ///
    /// # Errors
    /// [`RecipeError::InFile`] with the file's line.
    pub fn from_file(path: &Path, text: &str) -> Result<Self, RecipeError> {
        let parsed = toml::from_str::<Self>(text).map(drop);
        parsed.map_err(|e| in_file(path, &e))?;
        Self::from_toml(text).map_err(|e| at_line(path, text, "", e))
    }

    /// From the table `[recipe]` of the configuration at `path`, whose text is `text`.
    ///
    /// # Errors
    /// [`RecipeError::InFile`] with the file's line.
    pub fn from_configuration(path: &Path, text: &str) -> Result<Self, RecipeError> {
        let parsed = toml::from_str::<Checked>(text).map(drop);
        parsed.map_err(|e| in_file(path, &e))?;
        let whole = toml::from_str::<Configuration>(text).map_err(|e| in_file(path, &e))?;
        let own = whole.recipe.to_string();
        Self::from_toml(&own).map_err(|e| at_line(path, text, "recipe", e))
    }
}

fn in_file(path: &Path, e: &toml::de::Error) -> RecipeError {
    let said = e.to_string();
    RecipeError::InFile {
        said: format!("{}: {}{}", path.display(), said.trim_end(), hint(e)),
    }
}

fn at_line(path: &Path, text: &str, table: &str, e: RecipeError) -> RecipeError {
    let field = match &e {
        RecipeError::Range { field, .. } => field,
        RecipeError::Template { .. } | RecipeError::TwoTemplates { .. } => "template",
        RecipeError::Prompt(_) | RecipeError::PromptFile { .. } => "prompt",
        RecipeError::Parse(_) | RecipeError::InFile { .. } => return e,
    };
    let path = path.display();
    let said = match line_of(text, table, field) {
        Some(line) => format!("{path}:{line}: {e}"),
        None => format!("{path}: {e}"),
    };
    RecipeError::InFile { said }
}

/// 1-based line of a key (`local.samples`) in a table, whichever way it is written.
fn line_of(text: &str, table: &str, field: &str) -> Option<usize> {
    let wanted = match table {
        "" => field.to_owned(),
        table => format!("{table}.{field}"),
    };
    let mut within = String::new();
    let mut whole = None;
    for (line, row) in (1..).zip(text.lines()) {
        let row = row.trim();
        if let Some(name) = row.strip_prefix('[').and_then(|r| r.split_once(']')) {
            within = name.0.trim().to_owned();
            continue;
        }
        let Some((key, _)) = row.split_once('=').filter(|_| !row.starts_with('#')) else {
            continue;
        };
        let key: String = key
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '"')
            .collect();
        let full = match within.as_str() {
            "" => key,
            within => format!("{within}.{key}"),
        };
        if full == wanted {
            return Some(line);
        }
        // An inline table has the key on its line.
        if whole.is_none() && wanted.starts_with(&format!("{full}.")) {
            whole = Some(line);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(text: &str) -> String {
        let e = Recipe::from_configuration(Path::new("server.toml"), text);
        e.expect_err(text).to_string()
    }

    #[test]
    fn errors_have_the_users_file_line_and_key_and_the_nearest_known_one() {
        let text = "listen = \"127.0.0.1:1\"\n# a note\n[recipe]\nshards = 2\nshrads = 3\n";
        let said = configuration(text);
        assert!(
            said.contains("server.toml") && said.contains("line 5"),
            "{said}"
        );
        assert!(said.contains("did you mean `shards`?"), "{said}");
        let said = configuration("x = 1\n\n[recipe]\n\nquorum = 9\n");
        assert!(
            said.starts_with("server.toml:5: recipe: quorum is 9"),
            "{said}"
        );
        for text in [
            "a = 1\n[recipe]\nrounds = 1\n[recipe.local]\nsamples = 0\n",
            "[recipe]\nrounds = 1\n\n\nlocal = { samples = 0, batch = 1 }\n",
            "[recipe]\n\n\n\nlocal.samples = 0\n",
        ] {
            let said = configuration(text);
            assert!(
                said.starts_with("server.toml:5: recipe: local.samples"),
                "{said}"
            );
        }
        let said = configuration("[recipe]\nshards = \"two\"\n");
        assert!(
            said.contains("line 2") && said.contains("invalid type"),
            "{said}"
        );
        let own = Recipe::from_file(Path::new("r.toml"), "\nclip = -1.0\n");
        let said = own.expect_err("out of range").to_string();
        assert!(said.starts_with("r.toml:2: recipe: clip is -1"), "{said}");
        let fine = Recipe::from_configuration(Path::new("s"), "[recipe]\nshards = 2\n");
        assert_eq!(fine.expect("valid").shards, 2);
        let none = Recipe::from_configuration(Path::new("s"), "listen = \"x\"\n");
        assert_eq!(
            none.expect("the default"),
            Recipe::from_toml("").expect("valid")
        );
    }

    /// `server.toml` is written by hand. A fuzz target, too: `cargo bolero test -p lethe-recipe
    /// file::tests::mutated_configurations_never_panic`.
    #[test]
    fn mutated_configurations_never_panic() {
        let sample = include_bytes!("../../../docs/samples/server.toml");
        bolero::check!()
            .with_iterations(1_000)
            .with_type::<Vec<(u16, u8)>>()
            .for_each(|edits| {
                let mut bytes = sample.to_vec();
                for (at, value) in edits.iter().take(16) {
                    let i = usize::from(*at) % bytes.len();
                    bytes[i] = *value;
                }
                let text = String::from_utf8_lossy(&bytes);
                let path = Path::new("server.toml");
                if let Err(e) = Recipe::from_configuration(path, &text) {
                    assert!(e.to_string().contains("server.toml"), "{e}");
                }
            });
    }

    /// The keys of a table of the recipe, from what an error says that there are.
    fn keys(table: &str) -> Vec<String> {
        let text = match table {
            "" => "nobody_knows_it = 1\n".to_owned(),
            // Tables whose keys all have to be there are given all that come to mind first.
            "lora" => "[lora]\nrank = 1\nalpha = 1.0\ntargets = []\nnobody_knows_it = 1\n".into(),
            table => format!("[{table}]\nnobody_knows_it = 1\n"),
        };
        let e = toml::from_str::<Recipe>(&text).expect_err("an unknown key");
        let message = e.message().to_owned();
        let quoted = message.split('`').skip(1).step_by(2);
        quoted.skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn the_sample_has_every_key_of_the_recipe() {
        let sample = include_str!("../../../docs/samples/server.toml");
        let within = |table: &str| -> String {
            let head = match table {
                "" => "[recipe]".to_owned(),
                table => format!("[recipe.{table}]"),
            };
            let from = sample
                .find(&head)
                .unwrap_or_else(|| panic!("no table {head}"));
            let rest = &sample[from + head.len()..];
            rest[..rest.find("\n[").unwrap_or(rest.len())].to_owned()
        };
        let tables = ["lora", "split", "local", "packing", "balance", "apa"];
        for table in [""].into_iter().chain(tables) {
            let text = within(table);
            let known = keys(table);
            assert!(!known.is_empty(), "{table}");
            for key in known.iter().filter(|k| !tables.contains(&k.as_str())) {
                let is_there = text.lines().any(|l| {
                    let l = l.trim_start_matches(['#', ' ']);
                    l.strip_prefix(key.as_str())
                        .is_some_and(|r| r.trim_start().starts_with('='))
                });
                assert!(is_there, "docs/samples/server.toml lacks {table} {key}");
            }
        }
        let path = Path::new("docs/samples/server.toml");
        Recipe::from_configuration(path, sample).expect("the sample is a recipe");
    }
}
