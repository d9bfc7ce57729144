//! What a tenant was told, in words that do not depend on the run: ids by their order of appearance, and no times.

use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harness::actors::Reply;
use uuid::Uuid;

/// Everything that a tenant was told, a text per step.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    pub(super) steps: Vec<String>,
    canon: Canon,
}

impl Transcript {
    /// Adds what a step was told.
    pub(super) fn push(&mut self, raw: &str) {
        let text = self.canon.text(raw);
        self.steps.push(text);
    }
}

/// The first step that two transcripts tell differently.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) step: usize,
    alone: String,
    among_others: String,
}

impl Difference {
    pub(super) fn first(alone: &Transcript, among_others: &Transcript) -> Option<Self> {
        let steps = alone.steps.len().max(among_others.steps.len());
        let of = |transcript: &Transcript, step: usize| transcript.steps.get(step).cloned().unwrap_or_else(|| "(nothing)".to_owned());
        let step = (0..steps).find(|step| alone.steps.get(*step) != among_others.steps.get(*step))?;
        Some(Self { step, alone: of(alone, step), among_others: of(among_others, step) })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} differs\n--- alone\n{}\n--- among others\n{}\n---", self.step, self.alone, self.among_others)
    }
}

/// Which ids have appeared.
#[derive(Debug, Default)]
struct Canon {
    seen: HashMap<Uuid, usize>,
}

impl Canon {
    fn id(&mut self, id: Uuid) -> String {
        let next = self.seen.len();
        format!("<id {}>", self.seen.entry(id).or_insert(next))
    }

    fn text(&mut self, raw: &str) -> String {
        let (mut out, mut rest) = (String::with_capacity(raw.len()), raw);
        while let Some(first) = rest.chars().next() {
            let cursor = ["next_cursor\":\"", "cursor="].into_iter().find(|mark| out.ends_with(mark)).and_then(|_| cursor(rest));
            if let Some((tag, id, length)) = cursor {
                out.push_str(&format!("<cursor {tag} {}>", self.id(id)));
                rest = &rest[length..];
            } else if let Some(id) = rest.get(..36).and_then(|text| Uuid::try_parse(text).ok()) {
                out.push_str(&self.id(id));
                rest = &rest[36..];
            } else if let Some(length) = time(rest) {
                out.push_str("<time>");
                rest = &rest[length..];
            } else {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        out
    }
}

/// The list, the id and the length of a cursor of the server at the start of `text`.
fn cursor(text: &str) -> Option<(char, Uuid, usize)> {
    const LENGTH: usize = 23;
    let bytes = URL_SAFE_NO_PAD.decode(text.get(..LENGTH)?).ok()?;
    let (tag, id) = bytes.split_first()?;
    Some((char::from(*tag), Uuid::from_slice(id).ok()?, LENGTH))
}

/// The length of a time at the start of `text`, as JSON has it: `2026-01-31T12:00:00.123456Z`, or with `+00:00`.
fn time(text: &str) -> Option<usize> {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    let head = text.as_bytes().get(..SHAPE.len())?;
    let fits = |(byte, shape): (&u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
    if !head.iter().zip(SHAPE).all(fits) {
        return None;
    }
    let rest = &text[SHAPE.len()..];
    let zone = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let zone_length = ["Z", "+00:00"].into_iter().find(|known| zone.starts_with(known))?.len();
    Some(text.len() - zone.len() + zone_length)
}

/// The answer without its request id and its date. The length goes where the body holds a time, whose digits vary in number.
pub(super) fn told(reply: &Reply) -> String {
    let text = reply.comparable();
    let has_time = text.char_indices().any(|(at, c)| c == '2' && time(&text[at..]).is_some());
    let kept = |line: &&str| !(has_time && line.to_ascii_lowercase().starts_with("content-length:"));
    text.split('\n').filter(kept).collect::<Vec<_>>().join("\n")
}

#[test]
fn only_ids_times_and_cursors_are_replaced() {
    let (one, two) = (Uuid::now_v7(), Uuid::new_v4());
    let mut bytes = [b'p'; 17];
    bytes[1..].copy_from_slice(two.as_bytes());
    let cursor = URL_SAFE_NO_PAD.encode(bytes);
    let raw =
        format!("{two} \"{one}\" é{two}, 2026-01-31T12:00:00.1Z/2026-01-31T12:00:00+00:00 2026-01-31 \"7\" ?cursor={cursor} {cursor}");
    let text = format!("<id 0> \"<id 1>\" é<id 0>, <time>/<time> 2026-01-31 \"7\" ?cursor=<cursor p <id 0>> {cursor}");
    assert_eq!(Canon::default().text(&raw), text);
}

#[test]
fn a_difference_is_the_first_and_a_missing_step_is_one() {
    let of = |steps: &[&str]| {
        let mut transcript = Transcript::default();
        steps.iter().for_each(|step| transcript.push(step));
        transcript
    };
    assert!(Difference::first(&of(&["a", "b"]), &of(&["a", "b"])).is_none());
    assert_eq!(Difference::first(&of(&["a", "b", "c"]), &of(&["a", "x", "y"])).expect("one").step, 1);
    assert_eq!(Difference::first(&of(&["a"]), &of(&["a", "b"])).expect("one").step, 1);
}
