//! When a tenant is backed up by itself, which backups are kept, and when a restoration is rehearsed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike as _, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How often a tenant is backed up and drilled, and what is kept.
///
/// The default takes one backup a day, keeps two weeks of days, eight weeks and a year of months, and drills once a quarter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Schedule {
    /// A backup is due once the newest one is so old, in hours: 1 to 8760. `None`: none is taken by itself.
    pub every_hours: Option<u16>,
    /// Which of those that were taken by themselves are kept.
    pub keep: Keep,
    /// A drill is due once the last one is so long ago, in days: 1 to 3650. `None`: none is held by itself.
    pub drill_days: Option<u16>,
}

impl Schedule {
    /// Nothing happens by itself; what was kept is kept by the rules.
    pub const NONE: Self = Self { every_hours: None, keep: Keep::DEFAULT, drill_days: None };
    /// One that failed is tried again after so long.
    pub const RETRY: TimeDelta = TimeDelta::hours(1);

    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), with the field.
    pub fn check(&self) -> Result<()> {
        let within = |field: &'static str, value: Option<u16>, most: u16| match value {
            Some(value) if !(1..=most).contains(&value) => Err(Error::invalid(field, format!("must be 1 to {most}, or null for never"))),
            _ => Ok(()),
        };
        within("every_hours", self.every_hours, 8_760)?;
        within("drill_days", self.drill_days, 3_650)?;
        self.keep.check()
    }

    /// Whether a backup is due: `newest` is when the newest one was taken, whoever asked for it.
    pub fn is_backup_due(&self, newest: Option<DateTime<Utc>>, failed: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
        is_due(self.every_hours.map(|hours| TimeDelta::hours(hours.into())), newest, failed, now)
    }

    /// Whether a drill is due: `last` is when the last one ended well.
    pub fn is_drill_due(&self, last: Option<DateTime<Utc>>, failed: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
        is_due(self.drill_days.map(|days| TimeDelta::days(days.into())), last, failed, now)
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self { every_hours: Some(24), keep: Keep::DEFAULT, drill_days: Some(91) }
    }
}

fn is_due(every: Option<TimeDelta>, last: Option<DateTime<Utc>>, failed: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    let Some(every) = every else { return false };
    last.is_none_or(|last| now - last >= every) && failed.is_none_or(|failed| now - failed >= Schedule::RETRY)
}

/// How many backups are kept: the newest of each of so many days, weeks and months that have one, in UTC, weeks from Monday on. Whatever one
/// of the rules keeps is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Keep {
    /// The newest ones, whenever they were taken: 1 to 1000.
    pub last: u16,
    /// The newest of each of so many days.
    pub daily: u16,
    /// The newest of each of so many weeks.
    pub weekly: u16,
    /// The newest of each of so many months.
    pub monthly: u16,
}

impl Keep {
    const DEFAULT: Self = Self { last: 2, daily: 14, weekly: 8, monthly: 12 };
    /// What a restore put aside can be undone for so long.
    pub const UNDO: TimeDelta = TimeDelta::days(30);

    /// How many of each.
    pub const fn new(last: u16, daily: u16, weekly: u16, monthly: u16) -> Self {
        Self { last, daily, weekly, monthly }
    }

    fn check(&self) -> Result<()> {
        if self.last == 0 {
            return Err(Error::invalid("keep.last", "must be at least 1: the newest backup is always kept"));
        }
        for (field, count) in
            [("keep.last", self.last), ("keep.daily", self.daily), ("keep.weekly", self.weekly), ("keep.monthly", self.monthly)]
        {
            if count > 1_000 {
                return Err(Error::invalid(field, "must be 1000 at the most"));
            }
        }
        Ok(())
    }

    /// Which backups are kept no longer, as positions in `taken`: when each was taken and why, in any order.
    ///
    /// What somebody [asked](Reason::Asked) for stays until somebody deletes it, and what a restore put aside for [30 days](Keep::UNDO).
    pub fn outdated(&self, taken: &[(DateTime<Utc>, Reason)], now: DateTime<Utc>) -> BTreeSet<usize> {
        let mut scheduled: Vec<(usize, DateTime<Utc>)> = Vec::new();
        let mut outdated = BTreeSet::new();
        for (n, (at, reason)) in taken.iter().enumerate() {
            match reason {
                Reason::Asked => {}
                Reason::BeforeRestore if now - *at < Self::UNDO => {}
                Reason::BeforeRestore => drop(outdated.insert(n)),
                Reason::Scheduled => scheduled.push((n, *at)),
            }
        }
        scheduled.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
        let mut kept: BTreeSet<usize> = scheduled.iter().take(self.last.into()).map(|(n, _)| *n).collect();
        kept.extend(newest_of_each(&scheduled, self.daily, |at| i64::from(at.num_days_from_ce())));
        kept.extend(newest_of_each(&scheduled, self.weekly, |at| i64::from(at.num_days_from_ce() - 1).div_euclid(7)));
        kept.extend(newest_of_each(&scheduled, self.monthly, |at| i64::from(at.year()) * 12 + i64::from(at.month0())));
        outdated.extend(scheduled.iter().map(|(n, _)| *n).filter(|n| !kept.contains(n)));
        outdated
    }
}

impl Default for Keep {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// `taken` has the newest first.
fn newest_of_each(taken: &[(usize, DateTime<Utc>)], most: u16, period: impl Fn(&chrono::NaiveDate) -> i64) -> Vec<usize> {
    let mut periods = BTreeSet::new();
    let newest = taken.iter().filter(|(_, at)| periods.insert(period(&at.date_naive())));
    newest.take(most.into()).map(|(n, _)| *n).collect()
}

/// Why a backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Somebody asked for it.
    Asked,
    /// It was [due](Schedule).
    Scheduled,
    /// A restore came after it.
    BeforeRestore,
}

impl Reason {
    const ALL: [Self; 3] = [Self::Asked, Self::Scheduled, Self::BeforeRestore];

    /// In words: `before restore`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Scheduled => "scheduled",
            Self::BeforeRestore => "before restore",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|reason| reason.as_str() == text);
        known.ok_or_else(|| Error::invalid("reason", "must be asked, scheduled or before restore"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    #[test]
    fn a_backup_is_due_once_the_newest_is_old_and_a_failure_is_not_tried_at_once() {
        let (daily, now) = (Schedule::default(), at("2026-03-10T12:00:00Z"));
        let ago = |hours: i64| Some(now - TimeDelta::hours(hours));
        assert!(
            daily.is_backup_due(None, None, now) && daily.is_backup_due(ago(24), None, now) && !daily.is_backup_due(ago(23), None, now)
        );
        assert!(!daily.is_backup_due(ago(48), Some(now - TimeDelta::minutes(59)), now) && daily.is_backup_due(ago(48), ago(1), now));
        assert!(
            daily.is_drill_due(None, None, now)
                && !daily.is_drill_due(ago(90 * 24), None, now)
                && daily.is_drill_due(ago(91 * 24), None, now)
        );
        assert!(!Schedule::NONE.is_backup_due(None, None, now) && !Schedule::NONE.is_drill_due(None, None, now));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_field() {
        let refused = |schedule: Schedule| schedule.check().expect_err("refused").field().map(str::to_owned);
        let with = |keep| Schedule { keep, ..Schedule::default() };
        assert_eq!(refused(Schedule { every_hours: Some(0), ..Schedule::default() }).as_deref(), Some("every_hours"));
        assert_eq!(refused(Schedule { drill_days: Some(3_651), ..Schedule::default() }).as_deref(), Some("drill_days"));
        assert_eq!(refused(with(Keep::new(0, 1, 1, 1))).as_deref(), Some("keep.last"));
        assert_eq!(refused(with(Keep::new(1, 1, 1_001, 1))).as_deref(), Some("keep.weekly"));
        Schedule::NONE.check().expect("never is a schedule");
        let parsed: Schedule =
            serde_json::from_str(r#"{"every_hours": 6, "keep": {"daily": 3}}"#).expect("what is left out has its default");
        assert_eq!(parsed, Schedule { every_hours: Some(6), keep: Keep { daily: 3, ..Keep::DEFAULT }, drill_days: Some(91) });
    }

    #[test]
    fn a_year_of_days_thins_out_to_days_weeks_and_months() {
        let now = at("2026-12-31T23:00:00Z");
        let taken: Vec<_> = (0..365).map(|day| (now - TimeDelta::days(day), Reason::Scheduled)).collect();
        let outdated = Keep::new(2, 3, 3, 4).outdated(&taken, now);
        let kept: Vec<String> =
            taken.iter().enumerate().filter(|(n, _)| !outdated.contains(n)).map(|(_, (at, _))| at.format("%m-%d").to_string()).collect();
        // 2026-12-31 is a Thursday: its week's newest is itself, then Sunday the 27th and the 20th; then the months' last days.
        assert_eq!(kept, ["12-31", "12-30", "12-29", "12-27", "12-20", "11-30", "10-31", "09-30"]);
    }

    #[test]
    fn thinning_again_changes_nothing_and_the_newest_always_stays() {
        // One every seven hours, thinned after each: what would have been kept at once is kept bit by bit as well.
        let keep = Keep::new(1, 4, 3, 5);
        let mut kept: Vec<(DateTime<Utc>, Reason)> = Vec::new();
        let mut all = Vec::new();
        let start = at("2026-01-01T00:00:00Z");
        for n in 0..900 {
            let now = start + TimeDelta::hours(7 * n);
            kept.push((now, Reason::Scheduled));
            all.push((now, Reason::Scheduled));
            let outdated = keep.outdated(&kept, now);
            assert!(!outdated.contains(&(kept.len() - 1)), "the newest goes at {now}");
            kept = kept.iter().enumerate().filter(|(n, _)| !outdated.contains(n)).map(|(_, one)| *one).collect();
            assert!(keep.outdated(&kept, now).is_empty());
            let at_once = keep.outdated(&all, now);
            let at_once: Vec<_> = all.iter().enumerate().filter(|(n, _)| !at_once.contains(n)).map(|(_, one)| *one).collect();
            assert_eq!(kept, at_once, "at {now}");
        }
    }

    #[test]
    fn what_somebody_asked_for_stays_and_an_undo_for_thirty_days() {
        let now = at("2026-03-10T12:00:00Z");
        let days = |days: i64| now - TimeDelta::days(days);
        let taken = [
            (days(4_000), Reason::Asked),
            (days(29), Reason::BeforeRestore),
            (days(30), Reason::BeforeRestore),
            (days(4_000), Reason::Scheduled),
            (days(4_001), Reason::Scheduled),
        ];
        assert_eq!(Keep::new(1, 0, 0, 0).outdated(&taken, now), BTreeSet::from([2, 4]));
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse::<Reason>().expect("its own name"), reason);
        }
    }
}
