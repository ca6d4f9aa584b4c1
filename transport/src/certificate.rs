//! Parses what verification does not reveal: common name, validity, alternative names, purposes.
//!
//! rustls exposes none of these, and an X.509 library would add forty thousand lines for a few
//! fields. So this walks the DER encoding (RFC 5280, section 4.1) itself; anything that does not
//! fit is malformed.

use std::net::IpAddr;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERAL_TIME: u8 = 0x18;
/// `[0]` and `[3]` of a certificate: its version and its extensions.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// Tags of UTF-8, printable and IA5 strings; other string types are not used for names.
const STRINGS: [u8; 3] = [0x0c, 0x13, 0x16];
/// `[2]` and `[7]` of a general name.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// 2.5.4.3, 2.5.29.17 and 2.5.29.37.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const PURPOSES: &[u8] = &[0x55, 0x1d, 0x25];
/// 2.5.29.37.0, 1.3.6.1.5.5.7.3.1 and 1.3.6.1.5.5.7.3.2.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
const FOR_SERVERS: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const FOR_CLIENTS: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// The contents of a certificate; nothing here is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Common name of the subject; the last one if there are several.
    pub common_name: Option<String>,
    /// First second of its validity, since 1970.
    pub not_before: i64,
    /// Last second of its validity, since 1970.
    pub not_after: i64,
    /// DNS names of the subject.
    pub dns_names: Vec<String>,
    /// IP addresses of the subject.
    pub addresses: Vec<IpAddr>,
    /// What it may be used for.
    pub purposes: Purposes,
}

/// What a certificate may be used for in TLS; both if it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purposes {
    /// A server may present it.
    pub servers: bool,
    /// A client may present it.
    pub clients: bool,
}

impl Default for Purposes {
    fn default() -> Self {
        Self { servers: true, clients: true }
    }
}

impl Certificate {
    /// Parses a certificate in DER form; `None` if it is malformed.
    #[must_use]
    pub fn parse(der: &[u8]) -> Option<Self> {
        let mut fields = Der(der).open(SEQUENCE)?.open(SEQUENCE)?;
        if fields.tag() == Some(VERSION) {
            fields.next()?;
        }
        fields.open(INTEGER)?;
        let (_algorithm, _issuer) = (fields.open(SEQUENCE)?, fields.open(SEQUENCE)?);
        let mut validity = fields.open(SEQUENCE)?;
        let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
        let common_name = common_name(fields.open(SEQUENCE)?)?;
        let mut certificate = Self { common_name, not_before, not_after, ..Self::default() };
        while let Some(tag) = fields.tag() {
            let (_, content) = fields.next()?;
            if tag == EXTENSIONS {
                certificate.read_extensions(Der(content).open(SEQUENCE)?)?;
            }
        }
        Some(certificate)
    }

    fn read_extensions(&mut self, mut extensions: Der<'_>) -> Option<()> {
        while extensions.tag().is_some() {
            let mut extension = extensions.open(SEQUENCE)?;
            let kind = extension.open(OBJECT_ID)?.0;
            if kind != ALTERNATIVE_NAMES && kind != PURPOSES {
                continue;
            }
            // The `critical` flag may come first.
            while extension.tag()? != OCTETS {
                extension.next()?;
            }
            let content = extension.open(OCTETS)?.open(SEQUENCE)?;
            if kind == PURPOSES {
                self.purposes = purposes(content)?;
            } else {
                self.read_names(content)?;
            }
        }
        Some(())
    }

    fn read_names(&mut self, mut names: Der<'_>) -> Option<()> {
        while names.tag().is_some() {
            match names.next()? {
                (DNS_NAME, name) => self.dns_names.push(text(name)?),
                (IP_ADDRESS, bytes) => self.addresses.push(address(bytes)?),
                _ => {}
            }
        }
        Some(())
    }

    /// Checks that it is valid at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Why it is not, as text for users.
    pub fn check_time(&self, now: i64) -> Result<(), String> {
        if now > self.not_after {
            return Err(format!("its certificate expired {} s ago", now - self.not_after));
        }
        if now < self.not_before {
            let early = self.not_before - now;
            return Err(format!("its certificate is valid only in {early} s"));
        }
        Ok(())
    }
}

/// A sequence of DER elements.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn tag(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// Tag and content of the next element.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let count = length & 0x7f;
            // Four bytes express more than the largest file.
            if !(1..=4).contains(&count) {
                return None;
            }
            let (bytes, after) = rest.split_at_checked(count)?;
            length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            rest = after;
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The elements inside the next element, which must have this tag.
    fn open(&mut self, tag: u8) -> Option<Der<'a>> {
        let (found, content) = self.next()?;
        (found == tag).then_some(Der(content))
    }
}

fn common_name(mut subject: Der<'_>) -> Option<Option<String>> {
    let mut name = None;
    while subject.tag().is_some() {
        let mut attributes = subject.open(SET)?;
        while attributes.tag().is_some() {
            let mut attribute = attributes.open(SEQUENCE)?;
            let is_name = attribute.open(OBJECT_ID)?.0 == COMMON_NAME;
            let (tag, value) = attribute.next()?;
            if is_name {
                name = STRINGS.contains(&tag).then(|| text(value)).flatten();
            }
        }
    }
    Some(name)
}

fn purposes(mut listed: Der<'_>) -> Option<Purposes> {
    let mut purposes = Purposes { servers: false, clients: false };
    while listed.tag().is_some() {
        let purpose = listed.open(OBJECT_ID)?.0;
        purposes.servers |= purpose == ANY_PURPOSE || purpose == FOR_SERVERS;
        purposes.clients |= purpose == ANY_PURPOSE || purpose == FOR_CLIENTS;
    }
    Some(purposes)
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Seconds since 1970 of an RFC 5280 time: in UTC, with seconds, without fractions.
fn time((tag, digits): (u8, &[u8])) -> Option<i64> {
    let digits = digits.strip_suffix(b"Z")?;
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0i64, |number, digit| {
            digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0'))
        })
    };
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at(2);
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERAL_TIME, 14) => {
            let (year, rest) = digits.split_at(4);
            (number(year)?, rest)
        }
        _ => return None,
    };
    let part = |at: usize| number(&rest[at..at + 2]);
    let (month, day) = (part(0)?, part(2)?);
    let seconds = (part(4)? * 60 + part(6)?) * 60 + part(8)?;
    Some(days(year, month, day)? * 86_400 + seconds)
}

/// Days from 1970-01-01 to a Gregorian date.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // With years that begin in March, the leap day is the last of the year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(year * 365 + leaps + (month * 153 + 2) / 5 + day - 1 - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        assert_eq!(days(1970, 1, 1), Some(0));
        assert_eq!(days(2000, 2, 29), Some(11_016));
        assert_eq!(days(2026, 11, 21), Some(20_778));
        assert_eq!(days(2026, 13, 1), None);
    }

    #[test]
    fn both_forms_of_times_are_read() {
        assert_eq!(time((UTC_TIME, b"700101000001Z")), Some(1));
        assert_eq!(time((UTC_TIME, b"491231235959Z")), time((GENERAL_TIME, b"20491231235959Z")));
        assert_eq!(time((UTC_TIME, b"7001010000Z")), None);
        assert_eq!(time((GENERAL_TIME, b"1970x101000000Z")), None);
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for bytes in [&[][..], &[0x30], &[0x30, 0x85, 1, 1, 1, 1, 1], &[0x30, 2, 0x30, 0], b"noise"]
        {
            assert_eq!(Certificate::parse(bytes), None, "{bytes:?}");
        }
    }
}
