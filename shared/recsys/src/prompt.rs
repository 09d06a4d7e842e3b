//! Prompts, rendered from one template file per version: training and scoring share every byte.

use std::borrow::Cow;
use std::fmt::Write;

/// The content of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Labels of liked items, oldest first.
    pub liked: Vec<String>,
    /// Labels of items not liked, oldest first.
    pub disliked: Vec<String>,
    /// Label of the target.
    pub target: String,
}

/// A versioned template with the fields `{liked}`, `{disliked}` and `{target}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Name and version, part of the recipe; `"own"` for an operator's own text.
    pub version: &'static str,
    text: Cow<'static, str>,
}

/// The two answers, `[no, yes]`, as they follow the prompt.
pub const ANSWERS: [&str; 2] = [" No", " Yes"];

/// The most bytes of an operator's own template: some 2,000 tokens, as many as a scoring pass has.
pub const MAX_TEMPLATE: usize = 8 << 10;

const FIELDS: [&str; 3] = ["liked", "disliked", "target"];

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is too long.
    #[error("{got} bytes, expected at most {MAX_TEMPLATE}: shorten it")]
    Long {
        /// Its bytes.
        got: usize,
    },
    /// A field is missing.
    #[error("{{{field}}} is missing, expected {{liked}}, {{disliked}} and {{target}}")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// Braces that hold no known field.
    #[error(
        "{{{got}}} is no field, expected {{liked}}, {{disliked}} and {{target}}: use no other \
        braces"
    )]
    Unknown {
        /// What is between them, or the first of it.
        got: String,
    },
    /// White space at its end.
    #[error(
        "it ends with white space, expected a last word or sign: \" Yes\" or \" No\" follows, \
         with a space of its own"
    )]
    End,
}

impl Template {
    /// Names of the templates that are known.
    pub const KNOWN: [&str; 3] = ["tallrec-movie.v1", "tallrec-book.v1", "generic.v1"];

    /// TALLRec's movie prompt.
    pub fn movie() -> Self {
        Self {
            version: "tallrec-movie.v1",
            text: include_str!("../templates/tallrec-movie.v1.txt").into(),
        }
    }

    /// TALLRec's book prompt, without the authors.
    pub fn book() -> Self {
        Self {
            version: "tallrec-book.v1",
            text: include_str!("../templates/tallrec-book.v1.txt").into(),
        }
    }

    /// The same for items of any kind.
    pub fn generic() -> Self {
        Self {
            version: "generic.v1",
            text: include_str!("../templates/generic.v1.txt").into(),
        }
    }

    /// One of [`Self::KNOWN`].
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::movie(), Self::book(), Self::generic()];
        all.into_iter().find(|t| t.version == name)
    }

    /// An operator's own text.
    ///
    /// # Errors
    /// [`TemplateError`] says what is missing, or too much.
    pub fn own(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE {
            return Err(TemplateError::Long { got: text.len() });
        }
        let mut found = vec![];
        for part in text.split('{').skip(1) {
            let name = part.split_once('}').map_or(part, |p| p.0);
            let unknown = || TemplateError::Unknown {
                got: name.chars().take(20).collect(),
            };
            if !part.contains('}') {
                return Err(unknown());
            }
            let field = FIELDS.into_iter().find(|f| *f == name);
            found.push(field.ok_or_else(unknown)?);
        }
        if let Some(field) = FIELDS.into_iter().find(|f| !found.contains(f)) {
            return Err(TemplateError::Missing { field });
        }
        if text.ends_with(char::is_whitespace) {
            return Err(TemplateError::End);
        }
        Ok(Self {
            version: "own",
            text: text.to_owned().into(),
        })
    }

    /// The prompt's text.
    pub fn render(&self, prompt: &Prompt) -> String {
        let mut out = String::with_capacity(1024);
        let mut rest = &*self.text;
        // One pass over the template, so that titles holding braces are never expanded.
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let (field, after) = after.split_once('}').unwrap_or((after, ""));
            match field {
                "liked" => list(&mut out, &prompt.liked),
                "disliked" => list(&mut out, &prompt.disliked),
                _ => out.push_str(&prompt.target),
            }
            rest = after;
        }
        out + rest
    }
}

fn list(out: &mut String, titles: &[String]) {
    if titles.is_empty() {
        out.push_str("None");
    }
    for (i, t) in titles.iter().enumerate() {
        let _ = write!(out, "{}\"{t}\"", if i > 0 { ", " } else { "" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_the_reference_prompt() {
        let p = Prompt {
            liked: vec!["Fargo (1996)".into(), "Toy Story (1995)".into()],
            disliked: vec!["Twister (1996)".into()],
            target: "Star Wars (1977)".into(),
        };
        let want = "Given the user's preference and unpreference, identify whether the user will \
                    like the target movie \
                    by answering \"Yes.\" or \"No.\".\nUser Preference: \"Fargo (1996)\", \"Toy \
                        Story (1995)\"\n\
                    User Unpreference: \"Twister (1996)\"\nWhether the user will like the target \
                        movie \"Star Wars \
                    (1977)\"?\nAnswer:";
        assert_eq!(Template::movie().render(&p), want);
    }

    #[test]
    fn all_known_templates_are_templates() {
        for name in Template::KNOWN {
            let known = Template::named(name).expect(name);
            let own = Template::own(&known.text).expect(name);
            assert_eq!((known.version, &own.text), (name, &known.text));
        }
        assert_eq!(Template::named("tallrec-movie.v2"), None);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        let refused = |text: &str| Template::own(text).expect_err(text).to_string();
        assert!(refused("{liked} {target}?").contains("{disliked} is missing"));
        assert!(refused("{liked} {disliked} {target} {name}?").contains("{name} is no field"));
        assert!(refused("{liked} {disliked} {target} {").contains("{} is no field"));
        assert!(refused("{liked} {disliked} {target}\n").contains("white space"));
        let long = format!(
            "{{liked}} {{disliked}} {{target}} {}",
            "x".repeat(MAX_TEMPLATE)
        );
        assert!(refused(&long).contains("expected at most 8192"));
        let own = Template::own("+ {liked} - {disliked}: {target}?").expect("fields");
        let prompt = Prompt {
            liked: vec!["Tea".into()],
            disliked: vec![],
            target: "Mug".into(),
        };
        assert_eq!(own.render(&prompt), "+ \"Tea\" - None: Mug?");
    }

    #[test]
    fn braces_in_titles_stay() {
        let p = Prompt {
            liked: vec![],
            disliked: vec!["{target}".into()],
            target: "x".into(),
        };
        let text = Template::movie().render(&p);
        assert!(text.contains("Preference: None") && text.contains("\"{target}\""));
    }
}
