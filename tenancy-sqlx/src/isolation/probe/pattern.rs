//! Texts that match a regular expression: what a CHECK asks for.

/// A text that matches `pattern`, if it is made of what CHECKs are usually made of: literals, classes, groups, alternatives and
/// repetitions. `seed` varies it. Whether it matches is for the database to say.
pub(super) fn sample(pattern: &str, seed: u64) -> String {
    let mut sampler = Sampler { rest: pattern.chars().collect(), at: 0, seed: seed | 1, budget: 2_000 };
    sampler.alternatives()
}

struct Sampler {
    rest: Vec<char>,
    at: usize,
    seed: u64,
    budget: usize,
}

impl Sampler {
    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += 1;
        Some(next)
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.seed >> 33).unwrap_or_default() % below.max(1)
    }

    /// The first of `a|b|c`, up to the end or the closing parenthesis.
    fn alternatives(&mut self) -> String {
        let first = self.sequence();
        while self.peek() == Some('|') {
            self.at += 1;
            self.sequence();
        }
        first
    }

    fn sequence(&mut self) -> String {
        let mut text = String::new();
        while let Some(c) = self.peek().filter(|c| !matches!(c, '|' | ')')) {
            let start = self.at;
            self.at += 1;
            let once = self.atom(c);
            let (least, most) = self.repetition();
            let after = self.at;
            text.push_str(if least > 0 || most > 0 { &once } else { "" });
            // Once more from the start for each repetition, so that characters differ.
            for _ in 1..least.max(most.min(8)) {
                if self.budget == 0 {
                    break;
                }
                self.budget -= 1;
                self.at = start + 1;
                text.push_str(&self.atom(c));
            }
            self.at = after;
        }
        text
    }

    fn atom(&mut self, c: char) -> String {
        match c {
            '^' | '$' => String::new(),
            '.' => self.one_of(&[('a', 'z')]).into(),
            '[' => {
                let class = self.class();
                self.one_of(&class).into()
            }
            '(' => {
                if self.peek() == Some('?') {
                    self.at += 2;
                }
                let inner = self.alternatives();
                self.at += 1; // the closing one
                inner
            }
            '\\' => match self.next() {
                Some('d') => self.one_of(&[('0', '9')]).into(),
                Some('w') => self.one_of(&[('a', 'z')]).into(),
                Some('s') => " ".to_owned(),
                Some('m' | 'M' | 'y' | 'A' | 'Z') | None => String::new(),
                Some(literal) => literal.into(),
            },
            literal => literal.into(),
        }
    }

    /// What may be repeated how often: `*`, `+`, `?`, `{2}`, `{2,}`, `{2,5}`.
    fn repetition(&mut self) -> (usize, usize) {
        let range = match self.peek() {
            Some('*' | '+') => (1, 6),
            Some('?') => (1, 1),
            Some('{') => {
                let text: String = self.rest[self.at + 1..].iter().take_while(|c| **c != '}').collect();
                self.at += text.chars().count() + 1;
                let (least, most) = text.split_once(',').unwrap_or((&text, &text));
                let least = least.parse().unwrap_or(1);
                (least, most.parse().unwrap_or(least + 6))
            }
            _ => return (1, 1),
        };
        self.at += 1;
        if self.peek() == Some('?') {
            self.at += 1; // not greedy
        }
        range
    }

    fn class(&mut self) -> Vec<(char, char)> {
        let negated = self.peek() == Some('^');
        self.at += usize::from(negated);
        let mut ranges = Vec::new();
        while let Some(c) = self.next() {
            match c {
                ']' if !ranges.is_empty() => break,
                '[' if self.peek() == Some(':') => {
                    let name: String = self.rest[self.at + 1..].iter().take_while(|c| **c != ':').collect();
                    self.at += name.chars().count() + 3;
                    ranges.extend(match name.as_str() {
                        "digit" => vec![('0', '9')],
                        "upper" => vec![('A', 'Z')],
                        "space" => vec![(' ', ' ')],
                        "xdigit" => vec![('0', '9'), ('a', 'f')],
                        _ => vec![('a', 'z')],
                    });
                }
                '\\' => match self.next() {
                    Some('d') => ranges.push(('0', '9')),
                    Some('w') => ranges.push(('a', 'z')),
                    Some('s') => ranges.push((' ', ' ')),
                    Some(literal) => ranges.push((literal, literal)),
                    None => break,
                },
                low if self.peek() == Some('-') && self.rest.get(self.at + 1).is_some_and(|c| *c != ']') => {
                    self.at += 1;
                    let high = self.next().unwrap_or(low);
                    ranges.push((low, high));
                }
                single => ranges.push((single, single)),
            }
        }
        if negated {
            let plain = ('a'..='z').chain('0'..='9').find(|c| !ranges.iter().any(|(low, high)| (low..=high).contains(&c)));
            return plain.map(|c| vec![(c, c)]).unwrap_or_default();
        }
        ranges
    }

    fn one_of(&mut self, ranges: &[(char, char)]) -> char {
        let pick = self.random(ranges.len());
        let Some((low, high)) = ranges.get(pick).copied() else { return 'a' };
        let width = (high as usize).saturating_sub(low as usize) + 1;
        let offset = u32::try_from(self.random(width)).unwrap_or_default();
        char::from_u32(low as u32 + offset).unwrap_or(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_the_shape() {
        let is = |pattern: &str, test: fn(&str) -> bool| {
            for seed in 0..50 {
                let text = sample(pattern, seed);
                assert!(test(&text), "{pattern}: {text}");
            }
        };
        is("^[A-Z]{2}-[0-9]{4}$", |s| {
            s.len() == 7 && s[..2].bytes().all(|b| b.is_ascii_uppercase()) && s[3..].parse::<u32>().is_ok() && &s[2..3] == "-"
        });
        is("^(a|b)c+$", |s| s.starts_with('a') && s[1..].bytes().all(|b| b == b'c') && s.len() > 1);
        is("^[^@]+@[^@]+\\.[a-z]{2,}$", |s| s.split('@').count() == 2 && s.contains('.'));
        is("^[[:alpha:]_][[:alnum:]_]*$", |s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        is("^\\d{3}$", |s| s.len() == 3 && s.parse::<u32>().is_ok());
        is("^[a-z0-9-]{1,40}$", |s| (1..=40).contains(&s.len()));
    }

    #[test]
    fn what_is_no_pattern_ends_as_well() {
        for odd in ["", "(", "[", "[a", "a{", "a{2", "\\", "a**", ")", "((((", "[]", "[^", "(?:a)", "[[:x", "{3}", "((a{9}){9}){9}"] {
            sample(odd, 1);
        }
    }
}
