//! Prints and parses quoted bytes, durations, sizes and numbers as Go does.

use std::time::Duration;

/// `%q`: a quoted string; bytes that are not UTF-8 as `\xff`.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| quote_char(c, &mut out));
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

fn quote_char(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        ' '..='~' => out.push(c),
        '\0'..='\x7f' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
        _ if is_printable(c) => out.push(c),
        _ if u32::from(c) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        _ => out.push_str(&format!("\\U{:08x}", u32::from(c))),
    }
}

/// Rust's table of printable characters equals Go's, except that Rust escapes a combining mark that
/// stands alone; after a letter it does not.
fn is_printable(c: char) -> bool {
    let after_letter: String = ['a', c].iter().collect();
    !after_letter.escape_debug().any(|escaped| escaped == '\\')
}

/// Parses what [`quote`] wrote at the start of `text`: returns the bytes and the rest after the
/// closing quote. `None` if `text` does not begin with a complete quoted string.
pub(crate) fn unquote(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut out = Vec::new();
    loop {
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => return Some((out, rest)),
            '\n' => return None,
            '\\' => rest = unescape(rest, &mut out)?,
            _ => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
}

/// Decodes one escape after its backslash; returns the rest.
fn unescape<'a>(rest: &'a str, out: &mut Vec<u8>) -> Option<&'a str> {
    let kind = rest.chars().next()?;
    let tail = &rest[kind.len_utf8()..];
    let byte = match kind {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '"' => u8::try_from(kind).ok()?,
        'x' => {
            out.push(u8::from_str_radix(tail.get(..2)?, 16).ok()?);
            return tail.get(2..);
        }
        '0'..='7' => {
            out.push(u8::from_str_radix(rest.get(..3)?, 8).ok()?);
            return rest.get(3..);
        }
        'u' | 'U' => {
            let digits = if kind == 'u' { 4 } else { 8 };
            let code = u32::from_str_radix(tail.get(..digits)?, 16).ok()?;
            out.extend(char::from_u32(code)?.encode_utf8(&mut [0; 4]).bytes());
            return tail.get(digits..);
        }
        _ => return None,
    };
    out.push(byte);
    Some(tail)
}

/// A duration in the largest unit that fits, e.g. `1.012645ms`.
pub(crate) fn duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    if ns == 0 {
        return "0s".to_owned();
    }
    let seconds = duration.as_secs();
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(ns, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(ns, 1_000_000)),
        _ => {
            let rest = fraction(ns % 60_000_000_000, 1_000_000_000);
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => format!("{rest}s"),
                (0, minutes) => format!("{minutes}m{rest}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

/// `value / unit` without trailing zeros.
fn fraction(value: u128, unit: u128) -> String {
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A size in decimal units, e.g. `25 kB`.
pub(crate) fn bytes(size: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if size < 10 {
        return format!("{size} B");
    }
    let exponent = (size.ilog10() / 3) as usize;
    // Tenths of the unit, rounded half up.
    let unit = 1000_u128.pow(size.ilog10() / 3);
    let tenths = (u128::from(size) * 10 + unit / 2) / unit;
    if tenths < 100 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[exponent])
    } else {
        // The tenths were rounded once; the whole number is rounded from them, to even on a tie.
        let (whole, rest) = (tenths / 10, tenths % 10);
        let up = rest > 5 || (rest == 5 && whole % 2 == 1);
        format!("{} {}", whole + u128::from(up), UNITS[exponent])
    }
}

/// `strconv.ParseInt`, with its error messages.
pub(crate) fn parse_int(text: &str, radix: u32) -> Result<i64, String> {
    i64::from_str_radix(text, radix).map_err(|error| complaint("ParseInt", text, error.kind()))
}

/// `strconv.ParseUint`, with its error messages.
pub(crate) fn parse_uint(text: &str, radix: u32) -> Result<u64, String> {
    u64::from_str_radix(text, radix).map_err(|error| complaint("ParseUint", text, error.kind()))
}

fn complaint(function: &str, text: &str, kind: &std::num::IntErrorKind) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let reason = match kind {
        PosOverflow | NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.{function}: parsing {}: {reason}", quote(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_quoted_as_by_go() {
        let bytes = b"q\"\\x\ty\xff\x01\xc3\xa9\xe2\x80\x8b\xcc\x81z\x7f";
        let quoted = "\"q\\\"\\\\x\\ty\\xff\\x01\u{e9}\\u200b\u{301}z\\x7f\"";
        assert_eq!(quote(bytes), quoted);
        assert_eq!(unquote(quoted), Some((bytes.to_vec(), "")));
        assert_eq!(unquote("\"a\\u00e9\\101\" b"), Some(("a\u{e9}A".into(), " b")));
        assert_eq!(unquote("\"open"), None);
        assert_eq!(unquote("bare"), None);
    }

    #[test]
    fn durations_are_printed_as_by_go() {
        for (ns, text) in [
            (0, "0s"),
            (15, "15ns"),
            (1_500, "1.5µs"),
            (1_012_645, "1.012645ms"),
            (5_000_455_546, "5.000455546s"),
            (60_000_000_000, "1m0s"),
            (3_661_500_000_000, "1h1m1.5s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(ns)), text);
        }
    }

    #[test]
    fn sizes_are_printed_as_by_etcdctl() {
        for (size, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (24_576, "25 kB"),
            (2_147_483_648, "2.1 GB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn numbers_are_refused_in_the_words_of_go() {
        assert_eq!(parse_int("-f", 16), Ok(-15));
        assert_eq!(
            parse_int("zz", 16).unwrap_err(),
            "strconv.ParseInt: parsing \"zz\": invalid syntax"
        );
        assert_eq!(
            parse_uint("fffffffffffffffff", 16).unwrap_err(),
            "strconv.ParseUint: parsing \"fffffffffffffffff\": value out of range"
        );
    }
}
