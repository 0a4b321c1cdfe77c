//! The wall clock's time as people write it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// In UTC, to the millisecond (RFC 3339). A time before 1970 is told as 1970: a clock
/// that is so wrong tells nothing anyway.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        since.subsec_millis()
    )
}

/// The Gregorian date of a day that is counted from 1970-01-01. Years are counted
/// from a 1st of March here, so that the leap day is a year's last.
fn date(days_since_1970: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let days = days_since_1970 + 719_468;
    let (cycle, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    // What the leap days have added so far: one in 4 years, none in 100.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    // March to July, August to December, and the rest: 31, 30, 31, 30, 31 days.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, carry) = match month_from_march {
        0..=9 => (month_from_march + 3, 0),
        _ => (month_from_march - 9, 1),
    };
    (cycle * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date_1() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.250Z"),
            (951_782_399, "2000-02-28T23:59:59.250Z"),
            (951_868_799, "2000-02-29T23:59:59.250Z"),
            (951_868_800, "2000-03-01T00:00:00.250Z"),
            (1_709_164_800, "2024-02-29T00:00:00.250Z"),
            (1_735_689_599, "2024-12-31T23:59:59.250Z"),
            (4_107_542_400, "2100-03-01T00:00:00.250Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(250);
            assert_eq!(rfc3339(time), text);
        }
        assert_eq!(
            rfc3339(UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00.000Z"
        );
    }

    #[test]
    fn days_follow_each_other() {
        let mut last = (1970, 1, 1);
        for day in 1..366 * 900 {
            let (year, month, of_month) = date(day);
            let next_day = year == last.0 && month == last.1 && of_month == last.2 + 1;
            let next_month = year == last.0 && month == last.1 + 1 && of_month == 1;
            let next_year =
                year == last.0 + 1 && (month, of_month, last.1, last.2) == (1, 1, 12, 31);
            assert!(
                next_day || next_month && last.2 >= 28 || next_year,
                "{last:?} {day}"
            );
            last = (year, month, of_month);
        }
    }
}
