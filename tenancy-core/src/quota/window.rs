//! The periods that counters are counted in.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike as _, Days, Duration, LocalResult, Months, NaiveDate, NaiveTime, TimeZone as _, Utc, Weekday};
use chrono_tz::Tz;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// When counting begins anew. Every instant is in exactly one period, whatever daylight saving does.
///
/// | written | begins |
/// |---|---|
/// | `day@Europe/Berlin` | at midnight there (or when the day begins, where a clock change skips midnight) |
/// | `week:mon@UTC` | on that weekday |
/// | `month@UTC` | on the first |
/// | `month:31@UTC` | on that day of the month, or the last day of a shorter month |
/// | `3600s` | every so many seconds since 1970 |
/// | `lifetime` | never again |
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Window {
    /// A day of the time zone.
    Day {
        /// Where midnight is.
        zone: Tz,
    },
    /// A week of the time zone.
    Week {
        /// Its first day.
        starts: Weekday,
        /// Where midnight is.
        zone: Tz,
    },
    /// A month, from a day of it: 1 is the calendar's, another one a billing anchor.
    Month {
        /// From 1 to 31.
        day: u8,
        /// Where midnight is.
        zone: Tz,
    },
    /// So many seconds.
    Fixed {
        /// At least 1.
        seconds: u32,
    },
    /// All time.
    Lifetime,
}

/// One period of a [`Window`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The first instant of it.
    pub start: DateTime<Utc>,
    /// The first instant after it; `None` for a lifetime.
    pub end: Option<DateTime<Utc>>,
}

impl Period {
    /// What will have been used at the end, if it goes on as until `now`; `None` for a lifetime, and before a hundredth of the period.
    pub fn forecast(&self, used: u64, now: DateTime<Utc>) -> Option<u64> {
        let whole = (self.end? - self.start).num_milliseconds();
        let gone = (now - self.start).num_milliseconds();
        if gone <= 0 || gone > whole || gone.saturating_mul(100) < whole {
            return None;
        }
        let forecast = i128::from(used) * i128::from(whole) / i128::from(gone);
        Some(u64::try_from(forecast).unwrap_or(u64::MAX))
    }
}

impl Window {
    /// Calendar months of UTC.
    pub const MONTH: Self = Self::Month { day: 1, zone: Tz::UTC };
    /// Days of UTC.
    pub const DAY: Self = Self::Day { zone: Tz::UTC };

    /// The period that `now` is in.
    pub fn period(&self, now: DateTime<Utc>) -> Period {
        match *self {
            Self::Lifetime => Period { start: DateTime::UNIX_EPOCH, end: None },
            Self::Fixed { seconds } => {
                let seconds = i64::from(seconds.max(1));
                let start = now.timestamp().div_euclid(seconds) * seconds;
                let at = |second| DateTime::from_timestamp(second, 0).unwrap_or(DateTime::UNIX_EPOCH);
                Period { start: at(start), end: Some(at(start + seconds)) }
            }
            Self::Day { zone } => between(zone, now, |date| date, |date| date + Days::new(1)),
            Self::Week { starts, zone } => {
                let first = |date: NaiveDate| date.week(starts).first_day();
                between(zone, now, first, |date| date + Days::new(7))
            }
            Self::Month { day, zone } => between(zone, now, |date| anchor(date, day), |date| next_anchor(date, day)),
        }
    }

    /// How long a period is in seconds, as clients are told: a nominal number for days, weeks and months.
    pub fn seconds(&self) -> Option<u64> {
        const DAY: u64 = 86_400;
        match *self {
            Self::Day { .. } => Some(DAY),
            Self::Week { .. } => Some(7 * DAY),
            Self::Month { .. } => Some(30 * DAY),
            Self::Fixed { seconds } => Some(u64::from(seconds)),
            Self::Lifetime => None,
        }
    }
}

fn between(zone: Tz, now: DateTime<Utc>, first: impl Fn(NaiveDate) -> NaiveDate, next: impl Fn(NaiveDate) -> NaiveDate) -> Period {
    let mut date = first(now.with_timezone(&zone).date_naive());
    // A day that begins late (its midnight was skipped) or twice (clocks went back over it) can have begun after `now`.
    while begins(zone, date) > now {
        date = first(date - Days::new(1));
    }
    let mut after = next(date);
    while begins(zone, after) <= now {
        (date, after) = (after, next(after));
    }
    Period { start: begins(zone, date), end: Some(begins(zone, after)) }
}

/// The first instant of a day.
fn begins(zone: Tz, date: NaiveDate) -> DateTime<Utc> {
    let mut local = date.and_time(NaiveTime::MIN);
    for _ in 0..48 {
        match zone.from_local_datetime(&local) {
            LocalResult::Single(at) => return at.with_timezone(&Utc),
            LocalResult::Ambiguous(first, _) => return first.with_timezone(&Utc),
            LocalResult::None => local += Duration::minutes(30),
        }
    }
    // A day that does not exist at all (a zone that crossed the date line) begins with the next one.
    date.succ_opt().map_or(DateTime::<Utc>::MAX_UTC, |next| begins(zone, next))
}

/// The `day` of the month of `date`, or of the month before if that is yet to come.
fn anchor(date: NaiveDate, day: u8) -> NaiveDate {
    let of_month = |first: NaiveDate| {
        let last = first + Months::new(1) - Days::new(1);
        first.with_day(u32::from(day.max(1))).unwrap_or(last)
    };
    let first = date.with_day(1).unwrap_or(date);
    let this = of_month(first);
    if this <= date { this } else { of_month(first - Months::new(1)) }
}

fn next_anchor(date: NaiveDate, day: u8) -> NaiveDate {
    let next_month = date.with_day(1).unwrap_or(date) + Months::new(2) - Days::new(1);
    anchor(next_month, day)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day { zone } => write!(f, "day@{zone}"),
            Self::Week { starts, zone } => write!(f, "week:{}@{zone}", starts.to_string().to_lowercase()),
            Self::Month { day: 1, zone } => write!(f, "month@{zone}"),
            Self::Month { day, zone } => write!(f, "month:{day}@{zone}"),
            Self::Fixed { seconds } => write!(f, "{seconds}s"),
            Self::Lifetime => f.write_str("lifetime"),
        }
    }
}

impl FromStr for Window {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid(
                "window",
                "must be such as day@Europe/Berlin, week:mon@UTC, month@UTC, month:15@UTC, 3600s (at most 31622400s) or lifetime",
            )
        };
        if text == "lifetime" {
            return Ok(Self::Lifetime);
        }
        if let Some(seconds) = text.strip_suffix('s').and_then(|seconds| seconds.parse::<u32>().ok()) {
            return if (1..=31_622_400).contains(&seconds) { Ok(Self::Fixed { seconds }) } else { Err(invalid()) };
        }
        let (unit, zone) = text.split_once('@').ok_or_else(invalid)?;
        let zone: Tz =
            zone.parse().map_err(|_| Error::invalid("window", format!("{zone:.40} is no time zone, such as Europe/Berlin or UTC")))?;
        match unit.split_once(':') {
            None if unit == "day" => Ok(Self::Day { zone }),
            None if unit == "month" => Ok(Self::Month { day: 1, zone }),
            Some(("week", starts)) => Ok(Self::Week { starts: starts.parse().map_err(|_| invalid())?, zone }),
            Some(("month", day)) => match day.parse() {
                Ok(day @ 1..=31) => Ok(Self::Month { day, zone }),
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        }
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(|e: Error| serde::de::Error::custom(e.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect(text)
    }

    fn period(window: &str, now: &str) -> (String, String) {
        let period = window.parse::<Window>().expect(window).period(at(now));
        (period.start.format("%FT%H:%MZ").to_string(), period.end.map(|end| end.format("%FT%H:%MZ").to_string()).unwrap_or_default())
    }

    #[test]
    fn periods_begin_where_people_expect() {
        for (window, now, start, end) in [
            ("day@UTC", "2026-03-29T12:00:00Z", "2026-03-29T00:00Z", "2026-03-30T00:00Z"),
            // Clocks go forward: 23 hours. And back: 25.
            ("day@Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
            ("day@Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
            // Midnight itself is skipped, and comes twice.
            ("day@America/Asuncion", "2023-10-01T12:00:00Z", "2023-10-01T04:00Z", "2023-10-02T03:00Z"),
            ("day@America/Havana", "2023-11-05T04:30:00Z", "2023-11-05T04:00Z", "2023-11-06T05:00Z"),
            ("week:mon@UTC", "2026-11-26T00:00:00Z", "2026-11-23T00:00Z", "2026-11-30T00:00Z"),
            ("week:sun@UTC", "2026-11-22T00:00:00Z", "2026-11-22T00:00Z", "2026-11-29T00:00Z"),
            ("month@UTC", "2026-12-31T23:59:59Z", "2026-12-01T00:00Z", "2027-01-01T00:00Z"),
            ("month:31@UTC", "2026-02-28T00:00:00Z", "2026-02-28T00:00Z", "2026-03-31T00:00Z"),
            ("month:31@UTC", "2026-02-27T23:00:00Z", "2026-01-31T00:00Z", "2026-02-28T00:00Z"),
            ("month:15@UTC", "2026-01-14T00:00:00Z", "2025-12-15T00:00Z", "2026-01-15T00:00Z"),
            ("3600s", "2026-01-01T00:59:59Z", "2026-01-01T00:00Z", "2026-01-01T01:00Z"),
            ("lifetime", "2026-01-01T00:59:59Z", "1970-01-01T00:00Z", ""),
        ] {
            assert_eq!(period(window, now), (start.to_owned(), end.to_owned()), "{window} {now}");
        }
    }

    #[test]
    fn periods_follow_each_other_without_gap_or_overlap() {
        for window in [
            "day@Europe/Berlin",
            "day@America/Asuncion",
            "day@Pacific/Apia",
            "week:thu@Australia/Lord_Howe",
            "month:31@Asia/Tehran",
            "86400s",
        ] {
            let window: Window = window.parse().expect("a window");
            let mut now = at("2011-11-20T11:00:00Z");
            for _ in 0..120 {
                let period = window.period(now);
                let end = period.end.expect("an end");
                assert!(period.start <= now && now < end, "{window} {now}: {period:?}");
                assert_eq!(window.period(end - Duration::nanoseconds(1)), period, "{window}");
                assert_eq!(window.period(end).start, end, "{window}");
                now = end;
            }
        }
    }

    #[test]
    fn a_forecast_goes_on_as_before_and_waits_until_there_is_something_to_go_by() {
        let period = Window::DAY.period(at("2026-11-26T06:00:00Z"));
        assert_eq!(period.forecast(25, at("2026-11-26T06:00:00Z")), Some(100));
        assert_eq!(period.forecast(25, at("2026-11-26T00:14:00Z")), None);
        assert_eq!(Window::Lifetime.period(at("2026-11-26T06:00:00Z")).forecast(25, at("2026-11-26T06:00:00Z")), None);
    }

    #[test]
    fn a_window_is_written_as_it_is_read() {
        for text in ["day@Europe/Berlin", "week:mon@UTC", "month@UTC", "month:15@Asia/Tokyo", "3600s", "lifetime"] {
            assert_eq!(text.parse::<Window>().expect(text).to_string(), text);
        }
        for bad in ["", "day", "day@Nowhere", "week@UTC", "week:x@UTC", "month:0@UTC", "month:32@UTC", "0s", "99999999999s", "hour@UTC"] {
            assert_eq!(bad.parse::<Window>().expect_err(bad).field(), Some("window"), "{bad}");
        }
    }
}
