//! What somebody may have meant by a name that is not known.

/// The known name that is nearest to one that is not; `None`: none is near.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = 1 + name.chars().count() / 3;
    let ranked = known.map(|k| (distance(name, k), k));
    let near = ranked.filter(|(d, _)| *d <= far);
    near.min_by_key(|(d, _)| *d).map(|(_, k)| k)
}

/// A hint for an error about a key that is not known: `; did you mean "shards"?`. Empty where none
/// is near, or where the error is about something else.
pub fn hint(error: &toml::de::Error) -> String {
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let Some(name) = quoted.next().filter(|_| is_unknown) else {
        return String::new();
    };
    nearest(name, quoted).map_or(String::new(), |k| format!("\ndid you mean `{k}`?"))
}

/// How many letters have to be inserted, removed, replaced or swapped with their neighbour
/// (Damerau-Levenshtein, optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = vec![];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = last;
        last = row;
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_near_are_found() {
        let known = ["shards", "slices", "rounds", "deadline_s"];
        let near = |name: &str| nearest(name, known.iter().copied());
        assert_eq!(near("shard"), Some("shards"));
        assert_eq!(near("shrads"), Some("shards"));
        assert_eq!(near("deadline"), Some("deadline_s"));
        assert_eq!(near("temperature"), None);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "acb"), 1);
    }
}
