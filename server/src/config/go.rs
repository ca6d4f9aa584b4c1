//! Parses values as Go's standard library does, and gives Go's names.

use std::time::Duration;

/// Nanoseconds per unit. `m` comes after `ms`, of which it is a prefix.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 60 * 60 * 1_000_000_000),
];
/// Fraction digits that are read; later ones are less than a nanosecond in any unit.
const FRACTION_DIGITS_MAX: usize = 15;

/// `GOARCH` of this program.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Parses a boolean as `ParseBool` does; `None` if it is malformed.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Parses an integer as `ParseInt` does with base 0: in the base of its prefix, with `_` between
/// digits.
pub(super) fn integer(text: &str) -> Option<i128> {
    let (sign, number) = match text.strip_prefix('-') {
        Some(number) => (-1, number),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixes = [("0x", 16), ("0X", 16), ("0b", 2), ("0B", 2), ("0o", 8), ("0O", 8)];
    let prefixed =
        prefixes.iter().find_map(|(prefix, base)| Some((*base, number.strip_prefix(prefix)?)));
    let (base, digits) = match prefixed {
        // An underscore may also follow the prefix.
        Some((base, digits)) => (base, digits.strip_prefix('_').unwrap_or(digits)),
        None if number.len() > 1 && number.starts_with('0') => (8, number),
        None => (10, number),
    };
    let is_spaced = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    let digits = digits.replace('_', "");
    if is_spaced || !digits.starts_with(|digit: char| digit.is_digit(base)) {
        return None;
    }
    i128::from_str_radix(&digits, base).ok().map(|number| sign * number)
}

/// Parses a duration as `ParseDuration` does, but not a negative one (`1m30s`, `1.5s`, `0`); also
/// accepts longer units (`1day`).
///
/// # Errors
/// Says what is wrong with the text.
pub fn duration(text: &str) -> Result<Duration, String> {
    match pieces(text.strip_prefix('+').unwrap_or(text)) {
        Some(duration) => Ok(duration),
        None => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

fn pieces(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut sum: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, behind) = rest.split_at(rest.find(|c| !is_number(c))?);
        let (nanoseconds, behind) = UNITS
            .iter()
            .find_map(|(unit, nanoseconds)| Some((*nanoseconds, behind.strip_prefix(unit)?)))?;
        sum = sum.checked_add(times(number, nanoseconds)?)?;
        rest = behind;
    }
    Some(Duration::from_nanos(sum))
}

/// A decimal number of units, in nanoseconds.
fn times(number: &str, nanoseconds: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    if fraction.contains('.') {
        return None;
    }
    let digits = fraction.get(..FRACTION_DIGITS_MAX).unwrap_or(fraction);
    let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
    let digits: u128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let part = u64::try_from(digits * u128::from(nanoseconds) / scale).ok()?;
    whole.checked_mul(nanoseconds)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_read_as_by_go() {
        for (text, expected) in [
            ("0", 0),
            ("-1", -1),
            ("+7", 7),
            ("100", 100),
            ("1_000_000", 1_000_000),
            ("0x40", 64),
            ("0X_ff", 255),
            ("0b101", 5),
            ("0o17", 15),
            ("0144", 100),
            ("0_7", 7),
            ("18446744073709551615", 18_446_744_073_709_551_615),
        ] {
            assert_eq!(integer(text), Some(expected), "{text}");
        }
        for wrong in [
            "", "-", "abc", "1_", "_1", "1__0", "08", "0x", "0x_", "1.0", "1e3", " 1", "--1",
            "+-1", "0x-1",
        ] {
            assert_eq!(integer(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_are_read_as_by_go() {
        let milliseconds = |text: &str| duration(text).ok().map(|time| time.as_millis());
        for (text, expected) in [
            ("0", 0),
            ("+5s", 5_000),
            ("1.5s", 1_500),
            (".5s", 500),
            ("1.s", 1_000),
            ("1m30s", 90_000),
            ("1h0.5m", 3_630_000),
            ("500ms", 500),
            ("2000us", 2),
            ("2000µs", 2),
            ("3000000ns", 3),
            ("0.3333333333333333333h", 1_199_999),
            ("1day", 86_400_000),
        ] {
            assert_eq!(milliseconds(text), Some(expected), "{text}");
        }
        for wrong in ["", "5", "s", ".s", "1.2.3s", "-1s", "1x", "99999999999999999999s", "1s2"] {
            assert_eq!(duration(wrong).ok(), None, "{wrong}");
        }
    }
}
