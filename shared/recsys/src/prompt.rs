//! Prompts, rendered from one template file per version: training and scoring share every byte.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// Name and version, part of the recipe.
    pub version: &'static str,
    text: &'static str,
}

/// The two answers, `[no, yes]`, as they follow the prompt.
pub const ANSWERS: [&str; 2] = [" No", " Yes"];

impl Template {
    /// TALLRec's movie prompt.
    pub fn movie() -> Self {
        Self {
            version: "tallrec-movie.v1",
            text: include_str!("../templates/tallrec-movie.v1.txt"),
        }
    }

    /// TALLRec's book prompt, without the authors.
    pub fn book() -> Self {
        Self {
            version: "tallrec-book.v1",
            text: include_str!("../templates/tallrec-book.v1.txt"),
        }
    }

    /// The prompt's text.
    pub fn render(&self, prompt: &Prompt) -> String {
        let mut out = String::with_capacity(1024);
        let mut rest = self.text;
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
